//! Mending a file system with its own checker: the one thing beside the transaction that writes to
//! a disk, after asking, under the same claim.
//!
//! Only what loses nothing is done: `e2fsck -p` mends what it is sure of and stops at the rest;
//! `e2fsck -y` only where the user asked for exactly that. An XFS log is replayed by mounting it,
//! never thrown away (`xfs_repair -L`). `btrfs check --repair` is never run: its own manual says
//! not to.

use crate::base::shell;
use std::time::Duration;

use anyhow::{Context, Result};

use super::write_device::{Claims, Devices, claim_below, look};
use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::fsck::{Checkable, Checker, Journal, Ran, Verdict, run};
use crate::in_use;

/// Time between the two looks that tell a disk in use elsewhere.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// How far the checker may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What the checker is sure of.
    Safe,
    /// ext only: every question is answered with yes, and what cannot be placed is moved to
    /// lost+found or cut.
    AnswerYes,
}

/// What a checker did to a file system.
#[derive(Debug, Clone)]
pub struct Preened {
    /// The command line, without the device.
    pub line: String,
    /// What it did.
    pub ran: Ran,
}

/// The line that mending a file system will run, for the question that is asked before; a
/// [`Refusal`] where nothing may be run.
pub fn line(found: &Checkable, verdict: &Verdict, extent: Extent) -> Result<String, Refusal> {
    match (found.kind, &verdict.journal) {
        ("btrfs", _) => Err(btrfs(found)),
        ("xfs", Journal::NotReplayable(why)) => Err(dirty_log(found, why)),
        ("xfs", _) => Ok("xfs_repair".to_owned()),
        _ => Ok(format!("e2fsck {}", e2fsck_words(extent).join(" "))),
    }
}

fn e2fsck_words(extent: Extent) -> &'static [&'static str] {
    match extent {
        Extent::Safe => &["-f", "-p"],
        Extent::AnswerYes => &["-f", "-y"],
    }
}

/// Runs the checker on the disk itself. The caller has shown [`line`] and asked.
///
/// # Errors
/// [`Refusal`]s before anything is written: somebody uses the disk, or nothing may be run.
/// Everything else may have written.
pub fn preen(found: &Checkable, verdict: &Verdict, extent: Extent, ui: &dyn Ui) -> Result<Preened> {
    let line = line(found, verdict, extent)?;
    crate::mount::require_root("mending a file system")?;
    let checker = Checker::of(found.kind).context("a file system without a checker")?;
    let program = checker
        .find()
        .with_context(|| format!("{} is not installed", checker.program))?;
    let claims = claim_below(std::iter::once(&found.backing))?;
    refuse_moving(&claims, found)?;
    let ran = {
        let mut devices = Devices::new(&claims);
        let device = devices.open(&found.backing)?;
        if verdict.journal == Journal::Replayed && found.kind == "xfs" {
            let mount = crate::mount::mount_writable(&device.path(), found.kind)
                .context("replaying the log")?;
            mount.unmount().context("replaying the log")?;
        }
        let words = if found.kind == "xfs" {
            &[]
        } else {
            e2fsck_words(extent)
        };
        run(
            &program,
            words,
            &device.path(),
            ui,
            &format!("mending {} ({line})", found.device),
        )?
    };
    for claim in claims.into_values() {
        claim.close()?;
    }
    Ok(Preened { line, ran })
}

/// Two looks at the superblock and the journal, as before a repair.
fn refuse_moving(claims: &Claims, found: &Checkable) -> Result<()> {
    let bytes = look(&found.backing, claims)?.context("a folder is not checked")?;
    let first = in_use::head(bytes.as_ref(), found.kind)?;
    std::thread::sleep(BETWEEN_LOOKS);
    if in_use::head(bytes.as_ref(), found.kind)? == first {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "{} changed while nobody on this machine writes to it",
            found.device
        ),
        "the machine it belongs to is running, or another host has the disk: two writers would \
         destroy it",
        "power that machine off and detach the disk from other hosts, then run this again",
    )
    .into())
}

fn dirty_log(found: &Checkable, why: &str) -> Refusal {
    Refusal::new(
        format!(
            "the log of {} (xfs) cannot be replayed: {why}",
            found.device
        ),
        "only mounting it brings back what the log holds; xfs_repair -L would throw that away, and \
         Rescue never does it",
        format!(
            "mount it on a machine with a newer kernel, or copy the disk first and decide on the \
             copy yourself (`rescue fsck {}` shows the damage)",
            shell::quoted(found.backing.first_path())
        ),
    )
}

fn btrfs(found: &Checkable) -> Refusal {
    Refusal::new(
        format!("{} (btrfs) is damaged", found.device),
        "btrfs check --repair is known to make things worse and is never run by Rescue",
        "copy what can still be read (`mount -o ro,rescue=all`, or `btrfs restore`), and ask the \
         btrfs developers before --repair",
    )
}

/// What a mending came to, by the exit code.
pub fn left_damage(found: &Checkable, ran: &Ran) -> bool {
    match (found.kind, ran.code) {
        // e2fsck: 1 and 2 say that it corrected something.
        ("xfs", code) => code != Some(0),
        (_, code) => !matches!(code, Some(0..=3)),
    }
}
