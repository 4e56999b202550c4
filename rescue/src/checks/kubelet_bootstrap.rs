//! kubelet-bootstrap: the kubelet is told to bootstrap from a kubeconfig that is not there.
//!
//! kubeadm removes bootstrap-kubelet.conf once a node has joined and leaves
//! `--bootstrap-kubeconfig` in the kubelet's flags. That does no harm until the kubelet's client
//! certificate becomes unusable: then the kubelet dies at start with "unable to load bootstrap
//! kubeconfig", and the static pods of a control plane never start. The rule is the kubelet's own
//! (pkg/kubelet/certificate/bootstrap/bootstrap.go, isClientConfigStillValid).

use anyhow::{Context as _, Result};
use time::OffsetDateTime;

use super::kubelet_unit;
use crate::base::units;
use crate::change::Prepared;
use crate::finding::{Check, Context, Evidence, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath};
use crate::kubeconfig::{Kubeconfig, Material};
use crate::node::Role;
use crate::pki::x509::certificate::Certificate;
use crate::pki::x509::key::PrivateKey;
use crate::settings::{PatchKubelet, Settings};
use crate::systemd::Unit;
use crate::systemd::without_flag::{self, Edit};

const FLAG: &str = "--bootstrap-kubeconfig";

const MISSING: Mode = Mode::stops_boot(
    "kubelet-bootstrap.missing",
    "the kubelet has no usable client certificate and wants to bootstrap from a file that is \
     missing",
)
.why(
    "kubeadm removes bootstrap-kubelet.conf once a node has joined and leaves the flag. \
    It does no harm until the kubelet's client certificate is unusable: then the kubelet \
    exits with \"unable to load bootstrap kubeconfig: stat \
    /etc/kubernetes/bootstrap-kubelet.conf: no such file or directory\".",
)
.done(
    "A new client certificate cures it. Only where none can be issued the flag is taken \
    out with a drop-in.",
)
.source("pkg/kubelet/certificate/bootstrap/bootstrap.go")
.logged(&["unable to load bootstrap kubeconfig"]);
const HARMLESS: Mode = Mode::note(
    "kubelet-bootstrap.harmless",
    "--bootstrap-kubeconfig names a missing file, and the kubelet's certificate is usable",
)
.why("The kubelet looks at the file only when its own certificate cannot be used, and it can.")
.done("Nothing. Every node that has joined is like that.")
.source("pkg/kubelet/certificate/bootstrap/bootstrap.go");

/// See the module.
pub const CHECK: Check = Check {
    id: "kubelet-bootstrap",
    about: "a --bootstrap-kubeconfig that points to a missing file while the kubelet's client \
        certificate is unusable; takes the flag out by a drop-in where nothing better helps",
    modes: &[MISSING, HARMLESS],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &["certificates"],
    run,
};

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    // A kubelet that systemd does not start never comes so far; the check kubelet-unit says why.
    if kubelet_unit::fault(context.guest, context.node).is_some() {
        return Ok(Vec::new());
    }
    Ok(bootstrap_finding(context).into_iter().collect())
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
    let flag = Evidence::new(
        node.kubelet.flag_origin(FLAG),
        format!("{FLAG}={}", missing),
    );
    let mut finding = match &unusable {
        Some(_) => Finding::new(
            MISSING,
            "the kubelet does not start: it wants to bootstrap from a file that is not there",
        ),
        None => Finding::new(
            HARMLESS,
            "the kubelet's --bootstrap-kubeconfig points to a file that is not there; harmless \
             while its certificate is usable",
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
            "What cures it is a new client certificate for the kubelet. A worker has no CA key: \
             the disk of a control plane lends one (check certificates says how). Without any such \
             disk: `kubeadm token create` on a running control plane and a new \
             bootstrap-kubelet.conf, or joining the node again."
        } else {
            "What cures it is renewing the kubelet's client certificate (check certificates); the \
             flag is taken out only if that certificate stays unusable."
        });
    }
    match settings.patch_kubelet {
        PatchKubelet::Never => {
            return finding
                .with_advice("--patch-kubelet never: the kubelet's flags are left alone.");
        }
        PatchKubelet::Needed if worker => {
            return finding.with_advice(
                "The flag is left alone on a worker, because a kubelet without it can never \
                 bootstrap again; --patch-kubelet always takes it out nevertheless.",
            );
        }
        _ => {}
    }
    let hidden = |evidence: &Evidence| {
        let at = evidence.at.as_ref();
        at.is_some_and(|at| context.guest.hidden(&at.path).is_some())
    };
    if finding.evidence.iter().any(hidden) {
        return finding.with_advice(
            "The flag is left alone: what the kubelet will find at the next boot cannot be seen \
             from here.",
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
            "The flag is left alone: without {gone} the kubelet does not start with or without it, \
             and a node that is joined again needs it."
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

/// Why the kubelet will not use the client certificate in its kubeconfig; `None` when it will.
/// Issuer, names and NotBefore are not looked at, as the kubelet does not look at them either.
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
const NOTE: &str = "Written by rescue: the kubelet's client certificate was unusable and \
    bootstrap-kubelet.conf is gone, so the kubelet\n\
    would not start with --bootstrap-kubeconfig. Remove this file once the kubelet has a valid \
    certificate again.";

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
        lines.push(
            "the kubelet then starts with the certificate it has, and can never bootstrap again \
             until this is taken back"
                .to_owned(),
        );
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
    use crate::base::severity::Severity;
    use crate::checks::bench::Bench;
    use crate::tree::MemoryTree;

    const BOOTSTRAP: &str = "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf";
    const KUBEADM: &str = "[Service]\n\
        Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
        --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
        Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
        EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
        EnvironmentFile=-/etc/default/kubelet\n\
        ExecStart=\n\
        ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS \
        $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n";
    const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://10.0.0.1:6443'}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        users: [{name: u, user: {client-certificate: /var/lib/kubelet/pki/current.pem, client-key: \
        /var/lib/kubelet/pki/current.pem}}]\n";
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
            .file(
                "/usr/lib/systemd/system/kubelet.service",
                "[Service]\nExecStart=/usr/bin/kubelet\n",
            )
            .file(
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
                KUBEADM,
            )
            .file(
                "/var/lib/kubelet/kubeadm-flags.env",
                "KUBELET_KUBEADM_ARGS=\"--a='b c' --pod-infra-container-image=p:3.2\"\n",
            )
            .file(
                "/var/lib/kubelet/config.yaml",
                "staticPodPath: /etc/kubernetes/manifests\n",
            )
            .file(
                "/etc/kubernetes/manifests/kube-apiserver.yaml",
                "kind: Pod\nmetadata: {name: kube-apiserver}\n\
                 spec: {containers: [{command: [kube-apiserver]}]}\n",
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

    fn bench(settings: &Settings) -> Bench {
        Bench::new(CHECK).with(settings.clone())
    }

    fn findings(guest: &Guest, settings: &Settings) -> Vec<Finding> {
        bench(settings).found_in(guest)
    }

    /// Finds, prepares and applies; gives back the guest as planned, and checks that only the flag
    /// went.
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
        let planned = bench(settings).after(&guest, remedy.as_ref());
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
            .map(|seen| (seen.place(), seen.saw.as_str()))
            .collect();
        assert_eq!(
            evidence[0],
            (
                "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf:2".to_owned(),
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
                "users: [{{name: u, user: {{client-certificate-data: {}, client-key-data: \
                 {}}}}}]\n",
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
        let file = "KUBELET_KUBECONFIG_ARGS=\"--kubeconfig=/etc/kubernetes/kubelet.conf \
            --x='a\\\"b\\$c' --bootstrap-kubeconfig=/gone\"\n";
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
            .file(
                "/etc/systemd/system/kubelet.service",
                "[Service]\nEnvironmentFile=-/etc/kubernetes/kubelet.env\n\
                 ExecStart=/usr/local/bin/kubelet $KUBE_LOGTOSTDERR \\\n\t\t$KUBELET_ARGS\n",
            )
            .file(
                "/etc/kubernetes/kubelet.env",
                "KUBE_LOGTOSTDERR=\"--v=2\"\n\
                 KUBELET_ARGS=\"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \\\n\
                 --config=/var/lib/kubelet/config.yaml \\\n\
                 --kubeconfig=/etc/kubernetes/kubelet.conf \"\n",
            );
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
                "-/usr/bin/kubelet '--a=%n $$x' --bootstrap-kubeconfig=/gone \\\n \
                 --kubeconfig=/etc/kubernetes/kubelet.conf \\q",
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
                "/usr/bin/kubelet --bootstrap-kubeconfig ${B} \
                 --kubeconfig=/etc/kubernetes/kubelet.conf",
            ),
            &settings(),
        );
        mend(
            literal(
                "/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf --bootstrap-kubeconfig \
                 /gone",
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
        let after = bench(&settings()).after(&guest, found[0].remedies[0].as_ref());
        let folder = GuestPath::new("/etc/systemd/system/kubelet.service.d");
        assert_eq!(after.read_dir(&folder).unwrap().len(), 1);
        assert_ne!(text(&after, DROP_IN), text(&guest, DROP_IN));
    }

    #[test]
    fn a_shell_around_it_is_left_alone() {
        let unit = "[Service]\nExecStart=/bin/sh -c 'exec /usr/bin/kubelet \
            --bootstrap-kubeconfig=/gone --kubeconfig=/etc/kubernetes/kubelet.conf'\n";
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
}
