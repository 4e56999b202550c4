//! claimed-role: a disk that says it is a control plane, beside a real control plane of its
//! cluster, and holds no private key that only a control plane has. One empty manifest says so
//! much; it would be a way to the cluster's keys. Such a node stays a worker in this run.

use crate::finding::{Check, Context, Finding, Mode};

const ID: &str = "claimed-role";

const UNPROVEN: Mode = Mode::stops_boot(
    "claimed-role.unproven",
    "a disk says that it is a control plane, and holds no private key of one",
)
.why(
    "A manifest alone is no proof: a worker's disk that lies about itself would be given \
    the cluster's CA key.",
)
.done(
    "Treats the disk as a worker's. It gets no key of the cluster unless `--trust NAME` \
    names it.",
)
.source("docs/trust.md");

/// See the module.
pub const CHECK: Check = Check {
    id: ID,
    about: "with several disks in a run: one that says it is a control plane but holds no private \
        key of one; it is taken for a worker, and gets no key of the cluster unless --trust names \
        it",
    modes: &[UNPROVEN],
    roles: &[],
    after: &[],
    run,
};

fn run(context: &Context<'_>) -> anyhow::Result<Vec<Finding>> {
    let Some(doubt) = &context.node.doubt else {
        return Ok(Vec::new());
    };
    let party = context.node.name(&context.guest.source);
    let finding = Finding::new(
        UNPROVEN,
        format!("{party} says that it is a control plane, and nothing on its disk proves it"),
    )
    .with_evidence(
        claimed_at(&doubt.claim),
        format!("says so: {}", doubt.claim),
    )
    .with_evidence(
        "",
        format!(
            "no private key on this disk has a certificate of a control plane by the CA of {}",
            doubt.by
        ),
    )
    .with_advice(format!(
        "It is taken for a worker: no key of the cluster is copied to it, and nothing but its \
         kubelet's certificate is signed for it. If it is a worker, remove the manifest (who put \
         it there?). If you know for certain that it is a control plane which has lost all its \
         keys, run the same command again with --trust {}: it then gets the cluster's private \
         keys.",
        crate::base::shell::quoted(std::path::Path::new(&context.guest.source))
    ));
    Ok(vec![finding])
}

/// The file that a role's source begins with: `/etc/x.yaml (which cannot be read as a pod)`.
fn claimed_at(claim: &str) -> &str {
    claim
        .split(' ')
        .next()
        .filter(|path| path.starts_with('/'))
        .unwrap_or_default()
}
