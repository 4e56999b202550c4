//! What `request` and `install` share: the one node meant, its kubelet, and the way from a remedy
//! to a receipt.

use anyhow::Result;
use std::path::PathBuf;
use time::OffsetDateTime;

use crate::base::refusal::Refusal;
use crate::cli::Outcome;
use crate::cli::answers::Answers;
use crate::cli::args::{self, Stop};
use crate::cli::terminal::{agree, colours};
use crate::disk::Source;
use crate::finding::Finding;
use crate::finding::NodeReport;
use crate::pki::cluster_ca;
use crate::pki::inventory::Inventory;
use crate::pki::kubelet::KubeletClient;
use crate::pki::x509::certificate::Certificate;
use crate::plan::receipt::Receipt;
use crate::report::{json, text};
use crate::session::{Session, only_node};
use crate::typed;

/// Disks and folders; a folder needs no `--root` here.
pub fn sources(disks: &[PathBuf], roots: &[PathBuf]) -> Result<Vec<Source>, Stop> {
    let (folders, disks): (Vec<PathBuf>, Vec<PathBuf>) =
        disks.iter().cloned().partition(|path| path.is_dir());
    args::sources(&disks, &[roots, &folders].concat())
}

/// The node that a command is about.
pub struct Worker {
    /// As it was seen.
    pub report: NodeReport,
    /// Its kubelet.
    pub client: KubeletClient,
    /// Its name.
    pub node: String,
    /// What it takes for its cluster's CA.
    pub own: Vec<Certificate>,
    /// Its disks, to be typed again.
    pub typed: String,
}

impl Worker {
    /// Finds it on the sources.
    ///
    /// # Errors
    /// A [`Refusal`] where there is no kubelet, where it trusts two clusters, or where its name or
    /// CA cannot be known.
    pub fn meet(session: &Session<'_>, wanted: Option<&str>, now: OffsetDateTime) -> Result<Self> {
        let report = only_node(session.inspect()?, wanted)?;
        let typed = typed::sources(session.sources);
        let refuse = |saw: String, means: &str| {
            Refusal::new(
                saw,
                means,
                format!("rescue inspect {typed}    (says more about this node)"),
            )
        };
        if let Some(run) = report.unfinished_run() {
            let saw = format!(
                "an earlier repair of {} (run {}) was cut off",
                report.name(),
                run.id
            );
            let next = format!("rescue repair {typed}, then this again");
            return Err(Refusal::new(saw, "it has to be completed first", next).into());
        }
        let inventory = Inventory::read(&report.guest, &report.node, now);
        let own = cluster_ca::cluster_authorities(&report.guest, &inventory);
        let Some(client) = inventory.kubelet else {
            let means = "there is nothing to have a certificate signed for";
            return Err(refuse(
                format!("{} has no kubelet that uses a certificate", report.name()),
                means,
            )
            .into());
        };
        if let Some(why) = &client.foreign {
            return Err(refuse(
                why.clone(),
                "which cluster this node belongs to cannot be known",
            )
            .into());
        }
        if own.is_empty() {
            let saw = format!(
                "neither {} nor the CA file of this node holds a CA",
                client.kubeconfig
            );
            return Err(refuse(saw, "which cluster this node belongs to cannot be known").into());
        }
        let node = match &client.node_name {
            Ok(node) => node.clone(),
            Err(why) => {
                return Err(
                    refuse(why.clone(), "whom the certificate is for cannot be known").into(),
                );
            }
        };
        Ok(Self {
            report,
            client,
            node,
            own,
            typed,
        })
    }
}

/// Shows the plan of one finding, asks, carries it out, shows the receipt. `None` after a dry run.
pub fn carry_out(
    session: &Session<'_>,
    report: NodeReport,
    asked_for: &Finding,
    answers: Answers,
) -> Result<Option<Receipt>> {
    let plan = session.plan_of(&report, asked_for);
    let style = text::Style {
        colours: colours(),
        details: answers.dry_run,
    };
    if let Some(dropped) = plan.dropped.first() {
        let next = "mend what stands in the way, then run this again";
        return Err(Refusal::new(
            dropped.reason.clone(),
            format!("not possible: {}", dropped.summary),
            next,
        )
        .into());
    }
    answers.say(&text::plan(&plan, &style));
    if answers.dry_run {
        match answers.json {
            true => println!(
                "{}",
                json::repair(vec![json::planned(&report, &plan)], None, Vec::new())
            ),
            false => println!("This was a dry run: nothing was changed."),
        }
        return Ok(None);
    }
    agree(
        answers.yes,
        &format!("Carry this out on {}?", report.name()),
    )?;
    let receipt = session.repair(report, plan)?;
    answers.say(&text::receipt(
        &receipt,
        &typed::sources(session.sources),
        &style,
    ));
    Ok(Some(receipt))
}

/// How it ended.
pub fn outcome(receipt: &Receipt) -> Outcome {
    if receipt.after.needs_repair() {
        Outcome::FindingsLeft
    } else {
        Outcome::Clean
    }
}
