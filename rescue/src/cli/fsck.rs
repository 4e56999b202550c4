//! `rescue fsck SRC…`: look without writing, say what was found, ask, mend, look again.

use anyhow::{Result, bail};

use super::Outcome;
use super::args::{self, Fsck, Stop};
use super::terminal::{Terminal, confirm};
use crate::base::refusal::Refusal;
use crate::disk::{Disk, Source};
use crate::fsck::{self, Checkable, Found, Verdict};
use crate::in_use::read_only;
use crate::repair::preen::{self, Extent};
use crate::report::fsck::{Entry, json, mended, verdict};
use crate::session::PartWay;
use crate::typed;

/// Checks every file system on the disks.
pub fn run(command: &Fsck) -> Result<Result<Outcome>, Stop> {
    let sources = args::sources(&command.src, &[])?;
    read_only::protect(&sources);
    Ok(check(command, &sources))
}

fn check(command: &Fsck, sources: &[Source]) -> Result<Outcome> {
    let found = open(command)?;
    if found.file_systems.is_empty() {
        bail!(nothing_to_check(sources, &found));
    }
    let mut entries = Vec::new();
    for file_system in &found.file_systems {
        let seen = fsck::look(file_system, &Terminal)?;
        say(command, &verdict(&seen));
        entries.push((
            file_system,
            Entry {
                before: seen,
                mended: None,
                after: None,
                left: None,
            },
        ));
    }
    for (file_system, entry) in &mut entries {
        if entry.before.needs_mending() {
            mend(command, file_system, entry, &typed::sources(sources))?;
            say(command, &mended(entry));
        }
    }
    let entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
    if command.json {
        println!("{}", json(&entries, &found.notes));
    } else {
        found
            .notes
            .iter()
            .for_each(|note| println!("{}: {}", note.device, note.what));
    }
    Ok(if entries.iter().any(Entry::is_left) {
        Outcome::FindingsLeft
    } else {
        Outcome::Clean
    })
}

/// The disks are open only as long as what was found on them lives.
fn open(command: &Fsck) -> Result<Found> {
    let disks = command
        .src
        .iter()
        .map(|path| Disk::open(path))
        .collect::<Result<Vec<_>>>()?;
    fsck::find(&disks)
}

fn nothing_to_check(sources: &[Source], found: &Found) -> Refusal {
    let notes: Vec<String> = found
        .notes
        .iter()
        .map(|note| format!("{}: {}", note.device, note.what))
        .collect();
    let there = if notes.is_empty() {
        "nothing that is recognised".to_owned()
    } else {
        notes.join("; ")
    };
    Refusal::new(
        format!(
            "no ext, XFS or btrfs was found on {}",
            typed::sources(sources)
        ),
        format!("there is nothing to check; what is there: {there}"),
        "name the disk that holds the file systems; lsblk -f shows the disks of this machine",
    )
}

/// Asks, mends and looks again. What may not be mended, or was declined, is said in the entry.
fn mend(command: &Fsck, found: &Checkable, entry: &mut Entry, sources: &str) -> Result<()> {
    let extent = if command.answer_yes {
        Extent::AnswerYes
    } else {
        Extent::Safe
    };
    let line = match preen::line(found, &entry.before, extent) {
        Ok(line) => line,
        Err(refusal) => {
            entry.left = Some(refusal.to_string());
            return Ok(());
        }
    };
    if !agreed(command, found, &line) {
        entry.left = Some(format!(
            "Nothing was written to {}. Next: rescue fsck {sources}, and answer yes",
            found.device
        ));
        return Ok(());
    }
    let preened = match preen::preen(found, &entry.before, extent, &Terminal) {
        Ok(preened) => preened,
        Err(error) if error.is::<Refusal>() => return Err(error),
        Err(error) => return Err(PartWay::wrap(error)),
    };
    let failed = preen::left_damage(found, &preened.ran);
    entry.mended = Some(preened);
    let after = look_again(command, found).map_err(PartWay::wrap)?;
    if failed || after.needs_mending() {
        entry.left = Some(still_damaged(found, extent, sources));
    }
    entry.after = Some(after);
    Ok(())
}

fn agreed(command: &Fsck, found: &Checkable, line: &str) -> bool {
    let warning = if command.answer_yes {
        " It may cut files or move them to lost+found."
    } else {
        ""
    };
    let question = format!(
        "Mend {} with `{line}`?{warning} A copy of the disk, or a snapshot, is the only way back.",
        found.device
    );
    command.yes || (!command.json && confirm(&question))
}

/// With fresh eyes: the disk as it is now.
fn look_again(command: &Fsck, found: &Checkable) -> Result<Verdict> {
    let again = open(command)?;
    match again
        .file_systems
        .iter()
        .find(|there| there.backing == found.backing)
    {
        Some(there) => fsck::look(there, &Terminal),
        None => bail!("{} was not found again", found.device),
    }
}

fn still_damaged(found: &Checkable, extent: Extent, sources: &str) -> String {
    match (found.kind, extent) {
        ("xfs", _) => format!(
            "{} is still damaged. Next: copy the disk, then xfs_repair of a newer xfsprogs; if \
             that fails too, restore from a backup",
            found.device
        ),
        (_, Extent::Safe) => format!(
            "{} is still damaged: e2fsck does not mend the rest without an answer. Next: copy the \
             disk, then rescue fsck --answer-yes {sources}, \
             or answer e2fsck's questions yourself",
            found.device
        ),
        (_, Extent::AnswerYes) => {
            format!(
                "{} is still damaged. Next: copy what can be read of it, and restore the rest \
                 from a backup",
                found.device
            )
        }
    }
}

fn say(command: &Fsck, text: &str) {
    if !command.json {
        print!("{text}");
    }
}
