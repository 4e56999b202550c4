//! Runs the certificate checks on a folder and repairs it with the real transaction.

// Each test program uses a part of this.
#![allow(dead_code)]

pub mod cluster;

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use rescue::base::ui::Silent;
use rescue::change::Planned;
use rescue::change::Prepared;
use rescue::checks::CATALOGUE;
use rescue::disk::Backing;
use rescue::finding::{Context, Facts, Finding};
use rescue::guest::{FileSystem, Guest, GuestPath};
use rescue::node::Node;
use rescue::repair::WritableGuest;
use rescue::repair::transaction::{RunInfo, apply};
use rescue::settings::Settings;
use rescue::tree::Usage;

/// The checks of this room, in the catalogue's order.
pub const CHECKS: [&str; 3] = ["authorities", "certificates", "admin-kubeconfig"];

/// A guest in a folder, opened for writing as `rescue repair --root` does.
pub fn open(root: &Path) -> Result<WritableGuest> {
    let file_system = FileSystem {
        mount_point: GuestPath::new("/"),
        kind: "folder".to_owned(),
        device: root.display().to_string(),
        uuid: None,
        usage: Usage::default(),
        backing: Backing::Folder(root.to_path_buf()),
        subvolume: None,
        has_errors: false,
    };
    WritableGuest::open(&root.display().to_string(), &[file_system])
        .context("opening the folder for writing")
}

/// Findings of the checks, without any change.
pub fn inspect(guest: &Guest, settings: &Settings) -> Result<Vec<Finding>> {
    let node = Node::read(guest);
    let context = Context {
        guest,
        node: &node,
        settings,
        peers: &[],
        ui: &Silent,
        facts: &Facts::default(),
    };
    let mut findings = Vec::new();
    for check in CATALOGUE.iter().filter(|check| CHECKS.contains(&check.id)) {
        findings.extend((check.run)(&context)?);
    }
    Ok(findings)
}

/// What all remedies come to, each worked out on the guest as it is after those before; and the
/// findings they belong to.
pub fn plan(guest: &Guest, settings: &Settings) -> Result<(Vec<Finding>, Prepared)> {
    let node = Node::read(guest);
    let (mut all, mut findings) = (Prepared::default(), Vec::new());
    let mut planned = guest.clone();
    for check in CATALOGUE.iter().filter(|check| CHECKS.contains(&check.id)) {
        let context = Context {
            guest: &planned,
            node: &node,
            settings,
            peers: &[],
            ui: &Silent,
            facts: &Facts::default(),
        };
        let found = (check.run)(&context)?;
        for remedy in found.iter().flat_map(|finding| &finding.remedies) {
            let context = Context {
                guest: &planned,
                node: &node,
                settings,
                peers: &[],
                ui: &Silent,
                facts: &Facts::default(),
            };
            let prepared = remedy.prepare(&context).with_context(|| remedy.summary())?;
            let mut tree = Planned::over(planned.tree(), settings.now.unix_timestamp());
            for change in &prepared.changes {
                tree.apply(change)?;
            }
            planned = planned.with_tree(Rc::new(tree));
            all.changes.extend(prepared.changes);
        }
        findings.extend(found);
    }
    Ok((findings, all))
}

/// Repairs the folder; gives the findings of before and after.
pub fn repair(root: &Path, settings: &Settings) -> Result<(Vec<Finding>, Vec<Finding>)> {
    let writable = open(root)?;
    let (before, prepared) = plan(writable.guest(), settings)?;
    apply(
        &writable,
        prepared,
        &RunInfo::new(settings.now, Vec::new()),
        &Silent,
    )?;
    let after = inspect(writable.guest(), settings)?;
    writable.close()?;
    Ok((before, after))
}

/// Titles and advice, for messages of failed assertions.
pub fn told(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        format!(
            "[{}] {}\n    {:?}\n    {:?}\n    {:?}",
            finding.severity.word(),
            finding.title,
            finding.evidence,
            finding
                .remedies
                .iter()
                .map(|remedy| (remedy.kind(), remedy.summary(), remedy.details()))
                .collect::<Vec<_>>(),
            finding.advice
        )
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}
