//! The look that every repair takes before its first write. A machine whose memory went bad has
//! written nonsense into its file systems, and the journal has no say in that; writing to such a
//! file system makes it worse.

use crate::base::shell;
use std::sync::Arc;

use anyhow::Result;

use crate::base::refusal::Refusal;
use crate::base::ui::Ui;
use crate::disk::Backing;
use crate::disk::{ReadAt, probe};
use crate::fsck::{Checkable, Condition, Journal, Verdict, look};
use crate::guest::FileSystem;

/// Checks each file system once, as its disks hold it now, and refuses the first damaged one. What
/// cannot be checked is said, and is no refusal: most helpers lack one checker or another. What was
/// seen of the others is returned, for the receipt.
pub fn refuse_damaged(
    file_systems: &[(&FileSystem, Arc<dyn ReadAt>)],
    ui: &dyn Ui,
) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    let mut seen: Vec<&Backing> = Vec::new();
    for (file_system, bytes) in file_systems {
        if seen.contains(&&file_system.backing) {
            continue;
        }
        seen.push(&file_system.backing);
        let Some(checkable) = checkable(file_system, bytes)? else {
            ui.note(&format!(
                "{} ({}) was not checked: no checker is known",
                file_system.device, file_system.kind
            ));
            continue;
        };
        let verdict = look(&checkable, ui)?;
        if let Condition::NotChecked { why, next } = &verdict.condition {
            let next = next
                .as_ref()
                .map(|next| format!(". Next time: {next}"))
                .unwrap_or_default();
            ui.note(&format!(
                "{} ({}) was not checked before writing: {why}{next}",
                verdict.device, verdict.kind
            ));
        }
        if verdict.needs_mending() {
            return Err(refusal(&checkable, &verdict).into());
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

fn checkable(file_system: &FileSystem, bytes: &Arc<dyn ReadAt>) -> Result<Option<Checkable>> {
    let Some(probe) = probe::probe(bytes.as_ref())? else {
        return Ok(None);
    };
    let mut found = Checkable::of(
        file_system.device.clone(),
        &probe,
        bytes,
        &file_system.backing,
    );
    if let Some(found) = &mut found {
        found.error_flag |= file_system.has_errors;
    }
    Ok(found)
}

fn refusal(checkable: &Checkable, verdict: &Verdict) -> Refusal {
    let saw = match &verdict.journal {
        Journal::NotReplayable(why) => format!(
            "the journal of {} cannot be replayed: {why}",
            verdict.device
        ),
        _ if verdict.condition != Condition::Damaged => {
            format!("{} says of itself that it has errors", verdict.device)
        }
        _ => format!(
            "{} ({}) is damaged: {} says: {}",
            verdict.device,
            verdict.kind,
            verdict.checker.as_deref().unwrap_or_default(),
            verdict.first_complaint()
        ),
    };
    Refusal::new(
        saw,
        "writing to a damaged file system damages it further",
        format!(
            "`rescue fsck {}` shows the damage, and mends after asking what can be mended without \
             loss; then run this again (--no-fsck goes on without this look)",
            shell::quoted(checkable.backing.first_path())
        ),
    )
}
