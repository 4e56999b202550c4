//! kubelet-bootstrap: the kubelet is told to bootstrap from a kubeconfig that is not there.
//!
//! kubeadm removes bootstrap-kubelet.conf once a node has joined and leaves `--bootstrap-kubeconfig` in the kubelet's flags. That
//! does no harm until the kubelet's client certificate becomes unusable: then the kubelet dies at start with "unable to load
//! bootstrap kubeconfig", and the static pods of a control plane never start. The rule is the kubelet's own
//! (pkg/kubelet/certificate/bootstrap/bootstrap.go, isClientConfigStillValid).

use anyhow::{Context as _, Result};
use time::OffsetDateTime;

use crate::base::severity::Severity;
use crate::base::units;
use crate::change::Prepared;
use crate::finding::{Check, Context, Evidence, Finding, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::{Node, Role};
use crate::pki::x509::certificate::Certificate;
use crate::pki::x509::key::PrivateKey;
use crate::settings::{PatchKubelet, Settings};
use crate::systemd::Unit;
use crate::systemd::without_flag::{self, Edit};

const ID: &str = "kubelet-bootstrap";
const FLAG: &str = "--bootstrap-kubeconfig";

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct KubeletBootstrap;

impl Check for KubeletBootstrap {
    fn id(&self) -> &'static str {
        ID
    }

    fn about(&self) -> &'static str {
        "the kubelet's unit, and a --bootstrap-kubeconfig that points to a missing file while the kubelet's client certificate is \
         unusable; takes the flag out by a drop-in where nothing better helps"
    }

    fn run(&self, context: &Context<'_>) -> Result<Vec<Finding>> {
        if !matches!(
            context.node.role.value,
            Some(Role::ControlPlane | Role::Worker)
        ) {
            return Ok(Vec::new());
        }
        Ok(unit_findings(context.guest, context.node)
            .or_else(|| bootstrap_finding(context))
            .into_iter()
            .collect())
    }
}

/// A unit that systemd will not start at all.
fn unit_findings(guest: &Guest, node: &Node) -> Option<Finding> {
    let stops = |title: &str| Finding::new(ID, Severity::StopsBoot, title);
    let Some(unit) = &node.kubelet.unit else {
        return Some(no_unit(guest));
    };
    let path = unit
        .fragment
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    if unit.masked {
        return Some(
            stops("kubelet.service is masked: systemd refuses to start it")
                .with_evidence(&path, "empty, or a link to /dev/null")
                .with_advice(format!(
                    "If nobody masked it on purpose, remove {path} (after a power cut an empty unit file looks like a mask), or run \
                     `systemctl unmask kubelet` on the node."
                )),
        );
    }
    if let Some(refusal) = unit.refusals.first() {
        return Some(
            stops("systemd refuses to start kubelet.service")
                .with_evidence(path, refusal.clone())
                .with_advice("Correct the unit or the drop-in named here."),
        );
    }
    bare_command(guest, node, unit)
}

/// A kubelet without `--config` and `--pod-manifest-path` runs no static pod, and without `--kubeconfig` it knows no cluster. The usual cause is a
/// drop-in that a power cut left empty: it then hides the package's of the same name.
fn bare_command(guest: &Guest, node: &Node, unit: &Unit) -> Option<Finding> {
    let command = unit.command()?;
    let argv = unit.argv();
    let is_kubelet = argv
        .first()
        .is_some_and(|program| program.rsplit('/').next() == Some("kubelet"));
    let configured = [
        "--config",
        "--config-dir",
        "--pod-manifest-path",
        "--kubeconfig",
    ]
    .iter()
    .any(|flag| node.kubelet.flag(flag).is_some());
    if node.role.value != Some(Role::ControlPlane) || !is_kubelet || configured {
        return None;
    }
    let mut finding = Finding::new(
        ID,
        Severity::StopsBoot,
        "the kubelet is started without its configuration: it runs none of the control plane's static pods",
    )
    .with_evidence(&command.origin, "starts it without --config, --pod-manifest-path and --kubeconfig");
    let empty = |path: &&GuestPath| {
        guest
            .read(path)
            .is_ok_and(|bytes| bytes.trim_ascii().is_empty())
    };
    for drop_in in unit.drop_ins.iter().filter(empty) {
        finding = finding
            .with_evidence(
                drop_in,
                "empty: it adds nothing, and hides a file of the same name in /usr/lib/systemd/system",
            )
            .with_advice(format!("If nobody emptied {drop_in} on purpose (a power cut does that), remove it."));
    }
    Some(finding.with_advice(
        "kubeadm's packages bring the flags in kubelet.service.d/10-kubeadm.conf: install the kubeadm package of the node's version \
         again, or write that drop-in by hand.",
    ))
}

/// A unit that is not there, or that lies where nobody can look from here.
fn no_unit(guest: &Guest) -> Finding {
    const WHERE: &str = "/etc/systemd/system, /usr/lib/systemd/system";
    let unseen = |title: &str| {
        Finding::new(ID, Severity::WillBreak, title).with_evidence(WHERE, "no kubelet.service")
    };
    let units = GuestPath::new("/usr/lib/systemd/system");
    if let Some(missing) = guest.hidden(&units) {
        return unseen(
            "kubelet.service cannot be looked for: the disk that holds /usr was not given",
        )
        .with_advice(format!("{}. Give that disk too.", missing.why));
    }
    // Image-based systems mount /usr by a kernel argument, or bring the kubelet in an image that is laid over it at boot.
    if !guest.exists(&units) {
        return unseen("kubelet.service cannot be looked for: nothing is in /usr/lib/systemd/system, and fstab does not say where /usr is")
            .with_advice("If this system has its /usr on a partition of its own, look at the unit there.");
    }
    if let Some(image) = extension(guest) {
        return Finding::new(
            ID,
            Severity::Note,
            "kubelet.service cannot be looked for: it may come from a system extension",
        )
        .with_evidence(
            image,
            "laid over /usr at boot (systemd-sysext), not looked into",
        )
        .with_evidence(WHERE, "no kubelet.service");
    }
    Finding::new(
        ID,
        Severity::StopsBoot,
        "there is no kubelet.service: nothing starts the kubelet",
    )
    .with_evidence(WHERE, "no kubelet.service")
    .with_advice("Install the kubelet package again, in the version that the node had.")
}

/// The first image or folder that systemd-sysext lays over /usr (systemd-sysext(8)).
fn extension(guest: &Guest) -> Option<GuestPath> {
    ["/etc/extensions", "/var/lib/extensions"]
        .iter()
        .find_map(|folder| {
            let folder = GuestPath::new(folder);
            let first = guest
                .read_dir(&folder)
                .unwrap_or_default()
                .into_iter()
                .next()?;
            Some(folder.join(first.name))
        })
}

fn bootstrap_finding(context: &Context<'_>) -> Option<Finding> {
    let (guest, node, settings) = (context.guest, context.node, context.settings);
    let missing = node
        .kubelet
        .bootstrap_kubeconfig
        .value
        .as_ref()
        .filter(|path| !guest.exists(path))?;
    // Without --kubeconfig the kubelet runs alone and never bootstraps.
    let kubeconfig = node.kubelet.kubeconfig.value.as_ref()?;
    let unusable = unusable_client(guest, kubeconfig, settings.now);
    if unusable.is_none() && settings.patch_kubelet != PatchKubelet::Always {
        return None;
    }
    let flag = Evidence::new(flag_origin(node), format!("{FLAG}={}", missing));
    let mut finding = match &unusable {
        Some(_) => Finding::new(
            ID,
            Severity::StopsBoot,
            "the kubelet does not start: it wants to bootstrap from a file that is not there",
        ),
        None => Finding::new(
            ID,
            Severity::Note,
            "the kubelet's --bootstrap-kubeconfig points to a file that is not there; harmless while its certificate is usable",
        ),
    };
    finding.evidence.push(flag);
    finding.evidence.push(Evidence::new(missing, "not there"));
    finding.evidence.extend(unusable.clone());
    Some(with_policy(finding, context, unusable.is_some()))
}

/// Adds the remedy, or says why there is none.
fn with_policy(mut finding: Finding, context: &Context<'_>, stops: bool) -> Finding {
    let (node, settings) = (context.node, context.settings);
    let worker = node.role.value == Some(Role::Worker);
    if stops {
        finding = finding.with_advice(if worker {
            "What cures it is a new client certificate for the kubelet. A worker has no CA key: the disk of a \
             control plane lends one (check certificates says how). Without any such disk: `kubeadm token create` on a running control \
             plane and a new bootstrap-kubelet.conf, or joining the node again."
        } else {
            "What cures it is renewing the kubelet's client certificate (check certificates); the flag is taken out only if that \
             certificate stays unusable."
        });
    }
    match settings.patch_kubelet {
        PatchKubelet::Never => {
            return finding
                .with_advice("--patch-kubelet never: the kubelet's flags are left alone.");
        }
        PatchKubelet::Needed if worker => {
            return finding.with_advice(
                "The flag is left alone on a worker, because a kubelet without it can never bootstrap again; --patch-kubelet always \
                 takes it out nevertheless.",
            );
        }
        _ => {}
    }
    let hidden = |evidence: &Evidence| {
        context
            .guest
            .hidden(&GuestPath::new(&evidence.path))
            .is_some()
    };
    if finding.evidence.iter().any(hidden) {
        return finding.with_advice(
            "The flag is left alone: what the kubelet will find at the next boot cannot be seen from here.",
        );
    }
    let kubeconfig = node
        .kubelet
        .kubeconfig
        .value
        .as_ref()
        .filter(|path| !context.guest.exists(path));
    if let Some(gone) = kubeconfig
        && settings.patch_kubelet == PatchKubelet::Needed
    {
        return finding.with_advice(format!(
            "The flag is left alone: without {gone} the kubelet does not start with or without it, and a node that is joined again \
             needs it."
        ));
    }
    let Some(unit) = &node.kubelet.unit else {
        return finding;
    };
    match edit(context.guest, unit, settings) {
        Ok(edit) => finding.with_remedy(TakeFlagOut::new(unit, edit, settings)),
        Err(why) => finding.with_advice(format!(
            "The flag cannot be taken out automatically: {why}. Edit the unit by hand."
        )),
    }
}

fn flag_origin(node: &Node) -> String {
    let source = &node.kubelet.bootstrap_kubeconfig.source;
    source
        .strip_suffix(&format!(" {FLAG}"))
        .unwrap_or(source)
        .to_owned()
}

/// Why the kubelet will not use the client certificate in its kubeconfig; `None` when it will. Issuer, names and NotBefore are not
/// looked at, as the kubelet does not look at them either.
pub fn unusable_client(guest: &Guest, path: &GuestPath, now: OffsetDateTime) -> Option<Evidence> {
    let fault = |saw: String| Some(Evidence::new(path, saw));
    if !guest.exists(path) {
        return fault("not there".to_owned());
    }
    let kubeconfig = match guest
        .read(path)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| Kubeconfig::parse(&bytes, path))
    {
        Ok(kubeconfig) => kubeconfig,
        Err(error) => return fault(format!("cannot be read as a kubeconfig: {error:#}")),
    };
    let (Some(user), Some(cluster)) = (kubeconfig.current_user(), kubeconfig.current_cluster())
    else {
        return fault("its current context leads to no user and cluster".to_owned());
    };
    if cluster.server.as_deref().is_none_or(str::is_empty) {
        return fault("its cluster has no server".to_owned());
    }
    if user.both_specified {
        return fault(
            "its user has a certificate both inline and as a file, which is an error".to_owned(),
        );
    }
    if let Material::File(file) = &cluster.certificate_authority
        && let Err(error) = guest.read(file)
    {
        return Some(Evidence::new(
            file,
            format!("the cluster's CA cannot be read: {error}"),
        ));
    }
    let (certificate, at) = match material(guest, &user.certificate, path) {
        Ok(Some(found)) => found,
        Ok(None) => return fault("its user has no client certificate".to_owned()),
        Err(evidence) => return Some(evidence),
    };
    let (key, _) = match material(guest, &user.key, path) {
        Ok(Some(found)) => found,
        Ok(None) => return fault("its user has a client certificate without a key".to_owned()),
        Err(evidence) => return Some(evidence),
    };
    let certificates = match Certificate::all_from_pem(&certificate) {
        Ok(certificates) => certificates,
        Err(error) => return Some(Evidence::new(at, format!("cannot be read: {error:#}"))),
    };
    // Any expired certificate counts, a CA that follows the leaf included.
    if let Some(expired) = certificates
        .iter()
        .find(|certificate| now > certificate.not_after)
    {
        return Some(Evidence::new(
            at,
            format!(
                "client certificate expired {}",
                units::time(expired.not_after)
            ),
        ));
    }
    // Pairs in files are compared later and elsewhere by the kubelet.
    let inline =
        matches!(user.certificate, Material::Inline(_)) && matches!(user.key, Material::Inline(_));
    let mismatch = certificates.first().zip(PrivateKey::from_pem(&key).ok());
    match mismatch {
        Some((leaf, key)) if inline && leaf.public_key != key.public_key() => Some(Evidence::new(
            at,
            "the inline key does not belong to the client certificate",
        )),
        _ => None,
    }
}

/// The bytes, and where they are.
fn material(
    guest: &Guest,
    material: &Material,
    kubeconfig: &GuestPath,
) -> std::result::Result<Option<(Vec<u8>, GuestPath)>, Evidence> {
    match material {
        Material::None => Ok(None),
        Material::Inline(bytes) => Ok(Some((bytes.clone(), kubeconfig.clone()))),
        Material::File(file) => match guest.read(file) {
            Ok(bytes) => Ok(Some((bytes, file.clone()))),
            Err(error) => Err(Evidence::new(
                file,
                format!("named in {kubeconfig}: {error}"),
            )),
        },
    }
}

fn edit(
    guest: &Guest,
    unit: &Unit,
    settings: &Settings,
) -> std::result::Result<Edit, without_flag::Impossible> {
    if settings.in_place {
        without_flag::in_place(guest, unit, FLAG)
    } else {
        without_flag::by_drop_in(guest, unit, FLAG, NOTE)
    }
}

/// Stands in the drop-in, for whoever finds it.
const NOTE: &str = "Written by rescue: the kubelet's client certificate was unusable and bootstrap-kubelet.conf is gone, so the kubelet\n\
                    would not start with --bootstrap-kubeconfig. Remove this file once the kubelet has a valid certificate again.";

/// Takes the flag out of the kubelet's command line.
#[derive(Debug)]
struct TakeFlagOut {
    unit: String,
    in_place: bool,
    files: Vec<GuestPath>,
    reasons: Vec<String>,
}

impl TakeFlagOut {
    fn new(unit: &Unit, edit: Edit, settings: &Settings) -> Self {
        Self {
            unit: unit.name.clone(),
            in_place: settings.in_place,
            files: edit.files.into_iter().map(|(path, _)| path).collect(),
            reasons: edit.reasons,
        }
    }

    fn file_names(&self) -> String {
        self.files
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" and ")
    }
}

impl Remedy for TakeFlagOut {
    fn kind(&self) -> &'static str {
        if self.in_place {
            "edit-kubelet-flags"
        } else {
            "override-drop-in"
        }
    }

    fn summary(&self) -> String {
        let how = if self.in_place {
            "in place, in"
        } else {
            "by the drop-in"
        };
        format!(
            "take {FLAG} out of the kubelet's flags {how} {}",
            self.file_names()
        )
    }

    fn details(&self) -> Vec<String> {
        let mut lines = self.reasons.clone();
        lines.push("the kubelet then starts with the certificate it has, and can never bootstrap again until this is taken back".to_owned());
        lines
    }

    fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        let files: Vec<String> = self.files.iter().map(ToString::to_string).collect();
        [
            ("unit".to_owned(), self.unit.clone().into()),
            ("flag".to_owned(), FLAG.into()),
            ("files".to_owned(), files.into()),
        ]
        .into_iter()
        .collect()
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let unit = Unit::load(context.guest, &self.unit)
            .with_context(|| format!("loading {} in the guest", self.unit))?;
        let settings = Settings {
            in_place: self.in_place,
            ..context.settings.clone()
        };
        let edit = edit(context.guest, &unit, &settings)
            .with_context(|| format!("taking {FLAG} out of {}", self.unit))?;
        let changes = edit
            .changes(context.guest)
            .with_context(|| format!("changing {} in the guest", self.file_names()))?;
        Ok(Prepared {
            changes,
            ..Prepared::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ui::Silent;
    use crate::change::Planned;
    use crate::tree::MemoryTree;
    use std::rc::Rc;

    const BOOTSTRAP: &str = "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf";
    const KUBEADM: &str = "[Service]\n\
        Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
        Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
        EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
        EnvironmentFile=-/etc/default/kubelet\n\
        ExecStart=\n\
        ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n";
    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://10.0.0.1:6443'}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        users: [{name: u, user: {client-certificate: /var/lib/kubelet/pki/current.pem, client-key: /var/lib/kubelet/pki/current.pem}}]\n";
    const DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/90-rescue.conf";

    /// A self-signed certificate with its key, valid to 1 January of `year`.
    fn pem(year: i32) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&key).expect("a certificate").pem() + &key.serialize_pem()
    }

    fn now() -> OffsetDateTime {
        rcgen::date_time_ymd(2026, 6, 1)
    }

    /// A control plane as the legacy DEB packages leave it, its certificate valid to `year`.
    fn node(year: i32) -> MemoryTree {
        MemoryTree::new()
            .file("/usr/lib/systemd/system/kubelet.service", "[Service]\nExecStart=/usr/bin/kubelet\n")
            .file("/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", KUBEADM)
            .file(
                "/var/lib/kubelet/kubeadm-flags.env",
                "KUBELET_KUBEADM_ARGS=\"--a='b c' --pod-infra-container-image=p:3.2\"\n",
            )
            .file("/var/lib/kubelet/config.yaml", "staticPodPath: /etc/kubernetes/manifests\n")
            .file(
                "/etc/kubernetes/manifests/kube-apiserver.yaml",
                "kind: Pod\nmetadata: {name: kube-apiserver}\nspec: {containers: [{command: [kube-apiserver]}]}\n",
            )
            .file("/etc/kubernetes/kubelet.conf", KUBECONFIG)
            .file("/var/lib/kubelet/pki/current.pem", pem(year))
    }

    fn worker(year: i32) -> MemoryTree {
        node(year).without("/etc/kubernetes/manifests/kube-apiserver.yaml")
    }

    fn settings() -> Settings {
        Settings {
            now: now(),
            ..Settings::default()
        }
    }

    fn always() -> Settings {
        Settings {
            patch_kubelet: PatchKubelet::Always,
            ..settings()
        }
    }

    fn findings(guest: &Guest, settings: &Settings) -> Vec<Finding> {
        let node = Node::read(guest);
        KubeletBootstrap
            .run(&Context {
                guest,
                node: &node,
                settings,
                peers: &[],
                ui: &Silent,
            })
            .expect("it runs")
    }

    /// Finds, prepares and applies; gives back the guest as planned, and checks that only the flag went.
    fn mend(tree: MemoryTree, settings: &Settings) -> Guest {
        let guest = tree.into_guest();
        let before = Unit::load(&guest, "kubelet.service")
            .expect("a unit")
            .argv();
        let found = findings(&guest, settings);
        let finding = found.first().expect("a finding");
        let remedy = finding
            .remedies
            .first()
            .unwrap_or_else(|| panic!("no remedy: {finding:?}"));
        let node = Node::read(&guest);
        let prepared = remedy
            .prepare(&Context {
                guest: &guest,
                node: &node,
                settings,
                peers: &[],
                ui: &Silent,
            })
            .expect("it can be prepared");
        let mut planned = Planned::over(guest.tree(), 0);
        for change in &prepared.changes {
            planned.apply(change).expect("it can be planned");
        }
        let planned = guest.with_tree(Rc::new(planned));
        let after = Unit::load(&planned, "kubelet.service").expect("a unit");
        assert!(
            after.argv().iter().all(|word| !word.contains("bootstrap")),
            "{:?}",
            after.argv()
        );
        assert_eq!(after.argv(), without_flag::argv_without(&before, FLAG));
        assert_eq!(
            after.argv().len() + usize::from(before.iter().any(|word| word == FLAG)) + 1,
            before.len()
        );
        assert!(findings(&planned, settings).is_empty());
        planned
    }

    fn text(guest: &Guest, path: &str) -> String {
        guest
            .read_text(&GuestPath::new(path))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_drop_in_that_was_emptied_is_found() {
        let healthy = || node(2030);
        let found = |tree: MemoryTree| {
            let guest = tree.into_guest();
            unit_findings(&guest, &Node::read(&guest))
        };
        assert!(found(healthy()).is_none());
        let own = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf";
        let finding = found(healthy().file(own, "")).expect("the kubelet has no configuration");
        assert_eq!(finding.severity, Severity::StopsBoot);
        assert!(
            finding.title.contains("without its configuration"),
            "{}",
            finding.title
        );
        assert!(finding.advice[0].contains(own), "{:?}", finding.advice);
        // A script may bring what cannot be seen here.
        let script = "[Service]\nExecStart=\nExecStart=/usr/local/bin/start-kubelet\n";
        assert!(found(healthy().file(own, script)).is_none());
    }

    #[test]
    fn a_usable_certificate_is_no_finding() {
        assert!(findings(&node(2030).into_guest(), &settings()).is_empty());
        assert!(findings(&worker(2030).into_guest(), &settings()).is_empty());
        let there = node(2020).file("/etc/kubernetes/bootstrap-kubelet.conf", "x");
        assert!(findings(&there.into_guest(), &settings()).is_empty());
        let on_request = findings(&node(2030).into_guest(), &always());
        assert_eq!(
            (on_request[0].severity, on_request[0].remedies.len()),
            (Severity::Note, 1)
        );
    }

    #[test]
    fn an_expired_one_stops_the_kubelet() {
        let found = findings(&node(2020).into_guest(), &settings());
        assert_eq!((found.len(), found[0].severity), (1, Severity::StopsBoot));
        let evidence: Vec<_> = found[0]
            .evidence
            .iter()
            .map(|seen| (seen.path.as_str(), seen.saw.as_str()))
            .collect();
        assert_eq!(
            evidence[0],
            (
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf:2",
                BOOTSTRAP
            )
        );
        assert_eq!(evidence[2].0, "/var/lib/kubelet/pki/current.pem");
        assert!(evidence[2].1.contains("expired 2020-01-01"), "{evidence:?}");
        assert!(found[0].advice[0].contains("renewing the kubelet's client certificate"));
    }

    #[test]
    fn the_policy_decides_about_the_remedy() {
        let remedies = |tree: MemoryTree, patch_kubelet| {
            findings(
                &tree.into_guest(),
                &Settings {
                    patch_kubelet,
                    ..settings()
                },
            )[0]
            .remedies
            .len()
        };
        assert_eq!(remedies(node(2020), PatchKubelet::Needed), 1);
        assert_eq!(remedies(node(2020), PatchKubelet::Never), 0);
        assert_eq!(remedies(worker(2020), PatchKubelet::Needed), 0);
        assert_eq!(remedies(worker(2020), PatchKubelet::Always), 1);
        // No kubelet starts without its kubeconfig, whatever its flags.
        let without_kubeconfig = node(2020).without("/etc/kubernetes/kubelet.conf");
        assert_eq!(
            remedies(without_kubeconfig.clone(), PatchKubelet::Needed),
            0
        );
        assert_eq!(remedies(without_kubeconfig, PatchKubelet::Always), 1);
    }

    #[test]
    fn the_kubelets_own_rule() {
        let saw = |tree: MemoryTree| {
            let guest = tree.into_guest();
            let seen = unusable_client(
                &guest,
                &GuestPath::new("/etc/kubernetes/kubelet.conf"),
                now(),
            );
            seen.map(|evidence| evidence.saw).unwrap_or_default()
        };
        let conf = |text: &str| node(2030).file("/etc/kubernetes/kubelet.conf", text);
        assert_eq!(saw(node(2030)), "");
        assert!(saw(node(2030).without("/etc/kubernetes/kubelet.conf")).contains("not there"));
        assert!(saw(conf("{")).contains("cannot be read as a kubeconfig"));
        assert!(
            saw(conf(
                &KUBECONFIG.replace("current-context: c", "current-context: d")
            ))
            .contains("context")
        );
        assert!(saw(conf(&KUBECONFIG.replace("server", "ignored"))).contains("no server"));
        assert!(
            saw(node(2030).without("/var/lib/kubelet/pki/current.pem")).contains("does not exist")
        );
        assert!(
            saw(node(2030).file("/var/lib/kubelet/pki/current.pem", "")).contains("cannot be read")
        );
        let with_expired_ca = pem(2030) + &pem(2020);
        assert!(
            saw(node(2030).file("/var/lib/kubelet/pki/current.pem", with_expired_ca))
                .contains("expired")
        );
        let inline = |certificate: &str, key: &str| {
            use base64::Engine as _;
            let data = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
            let users = format!(
                "users: [{{name: u, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n",
                data(certificate),
                data(key)
            );
            let head = KUBECONFIG.split("users:").next().unwrap_or_default();
            conf(&format!("{head}{users}"))
        };
        let (one, other) = (pem(2030), pem(2030));
        assert_eq!(saw(inline(&one, &one)), "");
        assert!(saw(inline(&one, &other)).contains("does not belong"));
        assert!(
            saw(conf(&KUBECONFIG.replace("client-key:", "ignored:"))).contains("without a key")
        );
    }

    #[test]
    fn overrides_only_the_variable() {
        let planned = mend(node(2020), &settings());
        let drop_in = text(&planned, DROP_IN);
        let settings: Vec<&str> = drop_in
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert_eq!(
            settings,
            [
                "[Service]",
                "Environment=\"KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf\""
            ]
        );
        assert_eq!(
            planned.stat(&GuestPath::new(DROP_IN)).expect("there").mode,
            0o644
        );
    }

    #[test]
    fn beats_an_environment_file_with_another() {
        let file = "KUBELET_KUBECONFIG_ARGS=\"--kubeconfig=/etc/kubernetes/kubelet.conf --x='a\\\"b\\$c' --bootstrap-kubeconfig=/gone\"\n";
        let planned = mend(node(2020).file("/etc/default/kubelet", file), &settings());
        assert!(
            text(&planned, DROP_IN)
                .contains("EnvironmentFile=-/etc/systemd/system/kubelet.service.d/90-rescue.env")
        );
        assert!(!text(&planned, DROP_IN).contains("Environment="));
        // kubespray: everything in one variable over several lines, no drop-in folder.
        let kubespray = node(2020)
            .without("/usr/lib/systemd/system/kubelet.service.d")
            .without("/usr/lib/systemd/system/kubelet.service")
            .file("/etc/systemd/system/kubelet.service", "[Service]\nEnvironmentFile=-/etc/kubernetes/kubelet.env\nExecStart=/usr/local/bin/kubelet $KUBE_LOGTOSTDERR \\\n\t\t$KUBELET_ARGS\n")
            .file("/etc/kubernetes/kubelet.env", "KUBE_LOGTOSTDERR=\"--v=2\"\nKUBELET_ARGS=\"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \\\n--config=/var/lib/kubelet/config.yaml \\\n--kubeconfig=/etc/kubernetes/kubelet.conf \"\n");
        mend(kubespray.clone(), &settings());
        let planned = mend(
            kubespray,
            &Settings {
                in_place: true,
                ..settings()
            },
        );
        assert_eq!(
            text(&planned, "/etc/kubernetes/kubelet.env").lines().nth(1),
            Some("KUBELET_ARGS=\"\\")
        );
    }

    #[test]
    fn restates_a_literal_command_line() {
        let literal = |line: &str| {
            node(2020).file(
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
                format!("[Service]\nEnvironment=B=/gone\nExecStart=\nExecStart={line}\n"),
            )
        };
        let planned = mend(
            literal(
                "-/usr/bin/kubelet '--a=%n $$x' --bootstrap-kubeconfig=/gone \\\n --kubeconfig=/etc/kubernetes/kubelet.conf \\q",
            ),
            &settings(),
        );
        assert!(
            text(&planned, DROP_IN)
                .contains("ExecStart=\nExecStart=-/usr/bin/kubelet '--a=%n $$x'  --kubeconfig"),
            "{}",
            text(&planned, DROP_IN)
        );
        mend(
            literal(
                "/usr/bin/kubelet --bootstrap-kubeconfig ${B} --kubeconfig=/etc/kubernetes/kubelet.conf",
            ),
            &settings(),
        );
        mend(
            literal(
                "/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf --bootstrap-kubeconfig /gone",
            ),
            &Settings {
                in_place: true,
                ..settings()
            },
        );
    }

    #[test]
    fn edits_the_vendors_line() {
        let planned = mend(
            node(2020),
            &Settings {
                in_place: true,
                ..settings()
            },
        );
        let expected = KUBEADM.replace(&format!("{BOOTSTRAP} "), "");
        assert_eq!(
            text(
                &planned,
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"
            ),
            expected
        );
        assert!(!planned.exists(&GuestPath::new(DROP_IN)));
    }

    #[test]
    fn wins_over_a_later_drop_in_and_replaces_its_own() {
        let later = node(2020).file(
            "/etc/systemd/system/kubelet.service.d/99-site.conf",
            KUBEADM,
        );
        let planned = mend(later, &settings());
        assert!(planned.exists(&GuestPath::new(
            "/etc/systemd/system/kubelet.service.d/zz-90-rescue.conf"
        )));
        let stale = node(2020).file(DROP_IN, "[Service]\nEnvironment=KUBELET_EXTRA_ARGS=--old\n");
        let guest = stale.into_guest();
        let found = findings(&guest, &settings());
        let context = Context {
            guest: &guest,
            node: &Node::read(&guest),
            settings: &settings(),
            peers: &[],
            ui: &Silent,
        };
        let prepared = found[0].remedies[0]
            .prepare(&context)
            .expect("it can be prepared");
        assert_eq!(prepared.changes.len(), 1);
    }

    #[test]
    fn a_shell_around_it_is_left_alone() {
        let unit = "[Service]\nExecStart=/bin/sh -c 'exec /usr/bin/kubelet --bootstrap-kubeconfig=/gone --kubeconfig=/etc/kubernetes/kubelet.conf'\n";
        let tree = node(2020)
            .without("/usr/lib/systemd/system/kubelet.service.d")
            .file("/usr/lib/systemd/system/kubelet.service", unit);
        let found = findings(&tree.into_guest(), &settings());
        assert_eq!(
            (found[0].severity, found[0].remedies.len()),
            (Severity::StopsBoot, 0)
        );
        assert!(found[0].advice.iter().any(|line| line.contains("by hand")));
    }

    #[test]
    fn units_that_cannot_start() {
        let title = |tree: MemoryTree| {
            let found = findings(&tree.into_guest(), &settings());
            (found[0].title.clone(), found[0].remedies.len())
        };
        let masked = title(node(2030).link("/etc/systemd/system/kubelet.service", "/dev/null"));
        assert!(masked.0.contains("masked") && masked.1 == 0);
        let missing = title(node(2030).without("/usr/lib/systemd/system/kubelet.service"));
        assert!(missing.0.contains("no kubelet.service"));
        let broken = title(node(2030).file(
            "/etc/systemd/system/kubelet.service.d/20.conf",
            "[Service]\nExecStart=/bin/x\n",
        ));
        assert!(broken.0.contains("refuses"));
    }
}
