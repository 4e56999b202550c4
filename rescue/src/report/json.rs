//! JSON for programs: one object, schema `rescue/v1`, documented in docs/json.md. Fields are added,
//! never renamed or removed.

use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;

use super::{left_out, words};
use crate::base::schema::SCHEMA;
use crate::checks::CATALOGUE;
use crate::checks::verdict::Verdict;
use crate::etcd::read::status::Cluster;
use crate::finding::{Finding, Mode};
use crate::finding::{Inspection, NodeReport};
use crate::guest::FileSystem;
use crate::inventory::Inventory;
use crate::logs::LastWords;
use crate::node::{Fact, Node, Role, StaticPod};
use crate::pki::ferry::{CertificateFile, Entry, RequestFile};
use crate::plan::Plan;
use crate::plan::receipt::Receipt;
use crate::repair::prune::Pruned;
use crate::repair::undo::Undone;
use crate::settings::Settings;
use crate::survey::Survey;

/// `rescue inspect --json`.
pub fn inspection(inspection: &Inspection, settings: &Settings) -> Value {
    let judged = |report: &NodeReport| {
        let mut object = node(report);
        object["verdict"] = json!(Verdict::of(report, settings));
        object
    };
    json!({
        "schema": SCHEMA,
        "nodes": inspection.nodes.iter().map(judged).collect::<Vec<_>>(),
        "leftovers": inspection.leftovers,
    })
}

/// `rescue disks --json`.
pub fn inventory(inventory: &Inventory) -> Value {
    let mut object = Map::from_iter([("schema".to_owned(), Value::from(SCHEMA))]);
    if let Ok(Value::Object(fields)) = serde_json::to_value(inventory) {
        object.extend(fields);
    }
    Value::Object(object)
}

/// `rescue etcd status --json`; docs/etcd.md.
pub fn etcd_status(cluster: &Cluster, without: &[String]) -> Value {
    json!({ "schema": SCHEMA, "etcd": cluster, "without_etcd": without })
}

/// `rescue certs --json`.
pub fn survey(survey: &Survey) -> Value {
    let nodes: Vec<Value> = survey
        .nodes
        .iter()
        .map(|node| {
            json!({
                "name": node.name,
                "role": node.role.map(role),
                "source": node.source,
                "certificates": node.listing.rows,
                "unreferenced": node.listing.unreferenced,
            })
        })
        .collect();
    json!({
        "schema": SCHEMA,
        "nodes": nodes,
        "unreadable": survey.unreadable,
        "leftovers": survey.leftovers,
    })
}

/// A node with the plan made for it.
pub fn planned(report: &NodeReport, plan: &Plan) -> Value {
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .map(|step| {
            let mut object = remedy(step.remedy.as_ref());
            object.insert("check".into(), step.check.into());
            object.insert("finding".into(), step.finding.clone().into());
            object.insert("files".into(), step.files.into());
            object.insert("remarks".into(), step.remarks.clone().into());
            object.insert("details".into(), step.remedy.details().into());
            Value::Object(object)
        })
        .collect();
    let not_possible: Vec<Value> = plan
        .dropped
        .iter()
        .map(|dropped| json!({"summary": dropped.summary, "reason": dropped.reason}))
        .collect();
    let mut object = node(report);
    object["plan"] = json!({
        "steps": steps,
        "not_possible": not_possible,
        "left_out": left_out::objects(&plan.left_out),
        "left": findings(&plan.left),
    });
    object
}

/// What was done to one node.
pub fn receipt(receipt: &Receipt) -> Value {
    json!({
        "node": receipt.node,
        "run": receipt.run,
        "done": receipt.done,
        "left_out": left_out::objects(&receipt.left_out),
        "changes": receipt.applied.changes,
        "freed": receipt.applied.freed,
        "left_alone": receipt.applied.left_alone,
        "pruned": receipt.applied.pruned,
        "elsewhere": receipt.applied.elsewhere,
        "checked": receipt.checked,
        "headroom": receipt.headroom,
        "file_systems_before": file_systems(&receipt.before),
        "file_systems_after": file_systems(&receipt.after.guest.file_systems),
        "findings_before": receipt.findings_before,
        "left": findings(&receipt.after.findings),
        "verdict": receipt.verdict,
        "restart": receipt.restart,
        "seconds": receipt.took.as_secs_f64(),
    })
}

/// What was planned for several nodes as one, and what of it was done.
#[derive(Debug, Default)]
pub struct Together {
    /// Plans that were shown and not carried out.
    pub planned: Vec<Value>,
    /// Receipts.
    pub done: Vec<Value>,
}

/// `rescue repair --json`: the nodes as they are now, the receipt where something was carried out,
/// and those of several that failed.
pub fn repair(nodes: Vec<Value>, receipts: Option<Vec<Value>>, failed: Vec<Value>) -> Value {
    repair_together(nodes, receipts, Together::default(), failed)
}

/// The same where several nodes were looked at as one, too.
pub fn repair_together(
    nodes: Vec<Value>,
    receipts: Option<Vec<Value>>,
    together: Together,
    failed: Vec<Value>,
) -> Value {
    let mut object = json!({"schema": SCHEMA, "nodes": nodes});
    if let Some(runs) = receipts {
        object["receipt"] = json!({"runs": runs});
        if !together.done.is_empty() {
            object["receipt"]["together"] = Value::Array(together.done);
        }
    }
    if !together.planned.is_empty() {
        object["plan_together"] = Value::Array(together.planned);
    }
    if !failed.is_empty() {
        object["failed"] = Value::Array(failed);
    }
    object
}

/// One node of several that could not be repaired.
pub fn failed_node(name: &str, source: &str, kind: &str, message: &str) -> Value {
    json!({"name": name, "source": source, "kind": kind, "message": message})
}

/// `rescue certs request --json`.
pub fn request(path: &Path, file: &RequestFile) -> Value {
    let request = json!({
        "node": file.node,
        "public_key": file.public_key,
        "ca": file.ca,
        "created": file.created,
    });
    json!({"schema": SCHEMA, "nodes": [], "written": path, "request": request})
}

/// `rescue certs sign --json` and `bundle --json`; never a key.
pub fn certificates(path: &Path, file: &CertificateFile) -> Value {
    let entry = |entry: &Entry| {
        json!({
            "node": entry.node,
            "public_key": entry.public_key,
            "valid_to": entry.valid_to,
            "ca": entry.ca,
        })
    };
    let certificates: Vec<Value> = file.certificates.iter().map(entry).collect();
    json!({"schema": SCHEMA, "nodes": [], "written": path, "certificates": certificates})
}

/// `rescue undo --json`.
pub fn undone(undone: &Undone) -> Value {
    json!({"schema": SCHEMA, "nodes": [], "undone": undone_fields(undone)})
}

/// What became of one node's files.
pub(super) fn undone_fields(undone: &Undone) -> Value {
    json!({
        "run": undone.run,
        "restored": undone.restored,
        "removed": undone.removed,
        "kept": undone.kept,
        "not_undoable": undone.not_undoable,
        "elsewhere": undone.elsewhere,
    })
}

/// `rescue runs --prune --json`.
pub fn pruned(pruned: &Pruned) -> Value {
    let Pruned {
        removed,
        kept,
        bytes,
        elsewhere,
    } = pruned;
    let pruned = json!({"removed": removed, "kept": kept, "bytes": bytes, "elsewhere": elsewhere});
    json!({"schema": SCHEMA, "nodes": [], "pruned": pruned})
}

/// `rescue runs --json`.
pub fn runs(nodes: &[NodeReport]) -> Value {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|node| json!({"name": node.name(), "source": node.guest.source, "runs": node.runs}))
        .collect();
    json!({"schema": SCHEMA, "nodes": nodes})
}

/// `rescue words --json`.
pub fn last_words(nodes: &[(&NodeReport, LastWords)]) -> Value {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|(node, said)| words::json(node.name(), &node.guest.source, said))
        .collect();
    json!({"schema": SCHEMA, "nodes": nodes})
}

/// `rescue checks --json`.
pub fn checks() -> Value {
    let checks: Vec<Value> = CATALOGUE
        .iter()
        .map(|check| {
            let modes: Vec<Value> = check.modes.iter().map(mode).collect();
            json!({"check": check.id, "about": check.about, "modes": modes})
        })
        .collect();
    json!({"schema": SCHEMA, "checks": checks})
}

/// `rescue checks ID --json`.
pub fn modes(modes: &[&Mode]) -> Value {
    let modes: Vec<Value> = modes.iter().copied().map(mode).collect();
    json!({"schema": SCHEMA, "modes": modes})
}

fn mode(mode: &Mode) -> Value {
    json!({
        "mode": mode.id,
        "severity": mode.severity,
        "says": mode.says,
        "why": mode.page.why,
        "done": mode.page.done,
        "source": mode.page.source,
        "logged": mode.logged,
    })
}

/// Any command with `--json` that failed.
pub fn failure(kind: &str, message: &str) -> Value {
    json!({"schema": SCHEMA, "nodes": [], "error": {"kind": kind, "message": message}})
}

/// One node.
pub fn node(report: &NodeReport) -> Value {
    json!({
        "name": report.name(),
        "role": report.node.role.value.map(role),
        "source": report.guest.source,
        "facts": facts(report),
        "certificates": report.certificates,
        "unreferenced": report.unreferenced,
        "findings": findings(&report.findings),
        "runs": report.runs,
    })
}

fn role(role: Role) -> &'static str {
    match role {
        Role::ControlPlane => "control-plane",
        Role::Worker => "worker",
        Role::Etcd => "etcd",
        Role::OtherDistribution => "other-distribution",
        Role::NotKubernetes => "not-kubernetes",
    }
}

fn fact<T: Serialize>(fact: &Fact<T>) -> Value {
    json!({"value": fact.value, "source": fact.source})
}

fn facts(report: &NodeReport) -> Value {
    let node: &Node = &report.node;
    json!({
        "os": fact(&node.os),
        "hostname": fact(&node.hostname),
        "machine_id": fact(&node.machine_id),
        "kubelet_version": {
            "value": node.kubelet_version.value.map(|version| version.to_string()),
            "source": node.kubelet_version.source,
        },
        "role": fact(&node.role),
        "distribution": fact(&node.distribution),
        "node_name": fact(&node.node_name),
        "container_runtime": fact(&node.container_runtime),
        "certificate_dir": fact(&node.certificate_dir),
        "manifest_dir": fact(&node.manifest_dir),
        "static_pods": node.static_pods.iter().map(static_pod).collect::<Vec<_>>(),
        "kubelet": kubelet(node),
        "clock": node.clock.as_ref().map(|clock| {
            json!({"newest": crate::base::units::rfc3339(clock.newest), "source": clock.source})
        }),
        "file_systems": file_systems(&report.guest.file_systems),
        "unresolved_fstab": report.guest.unresolved,
    })
}

fn static_pod(pod: &StaticPod) -> Value {
    json!({"name": pod.name, "path": pod.path, "image": pod.image})
}

fn kubelet(node: &Node) -> Value {
    let kubelet = &node.kubelet;
    json!({
        "unit_files": kubelet.unit.as_ref().map(super::unit_files),
        "command_line": kubelet.unit.as_ref().map(|unit| unit.argv()),
        "config": fact(&kubelet.config_path),
        "kubeconfig": fact(&kubelet.kubeconfig),
        "bootstrap_kubeconfig": fact(&kubelet.bootstrap_kubeconfig),
        "cert_dir": fact(&kubelet.cert_dir),
    })
}

fn file_systems(list: &[FileSystem]) -> Vec<Value> {
    list.iter()
        .map(|fs| {
            json!({
                "mount_point": fs.mount_point,
                "type": fs.kind,
                "device": fs.device,
                "subvolume": fs.subvolume,
                "uuid": fs.uuid,
                "has_errors": fs.has_errors,
                "usage": fs.usage,
            })
        })
        .collect()
}

fn findings(findings: &[Finding]) -> Vec<Value> {
    findings
        .iter()
        .map(|finding| {
            json!({
                "check": finding.check(),
                "mode": finding.mode.id,
                "severity": finding.severity,
                "title": finding.title,
                "evidence": finding.evidence,
                "log": finding.log,
                "remedies": remedies(finding),
                "advice": finding.advice,
            })
        })
        .collect()
}

fn remedies(finding: &Finding) -> Vec<Value> {
    finding
        .remedies
        .iter()
        .map(|each| Value::Object(remedy(each.as_ref())))
        .collect()
}

fn remedy(remedy: &dyn crate::finding::Remedy) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kind".into(), remedy.kind().into());
    object.insert("summary".into(), remedy.summary().into());
    object.insert("can_be_undone".into(), remedy.can_be_undone().into());
    object.insert("asks_first".into(), remedy.asks_first().into());
    object.extend(remedy.fields());
    object
}
