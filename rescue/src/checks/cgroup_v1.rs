//! cgroup-v1: the next boot mounts cgroup v1, and the kubelet refuses to run on it.
//!
//! From 1.35 on `failCgroupV1` is true where nothing is said (SetDefaults_KubeletConfiguration in
//! pkg/kubelet/apis/config/v1beta1/defaults.go), and the kubelet exits while it validates its
//! configuration. Which version systemd mounts, it takes from the kernel's command line
//! (`systemd.unified_cgroup_hierarchy`, else `cgroup_no_v1=all`), else from how the distribution
//! built it (cg_is_unified_wanted in src/shared/cgroup-setup.c). Later systemd (256) does not follow
//! the command line without force; nothing is said of such a system.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use crate::base::severity::Severity;
use crate::base::yaml;
use crate::change::Prepared;
use crate::finding::{Check, Context, Finding, Mode, Remedy};
use crate::guest::{Guest, GuestPath, Origin};
use crate::node::{Node, Role, Version, boot_lines, os_release, package_version};

const REFUSED: Mode = Mode::stops_boot(
    "cgroup-v1.refused",
    "the next boot mounts cgroup v1, and the kubelet refuses to run on it",
)
.why(
    "From 1.35 on the kubelet exits at its start where failCgroupV1 is true, its default: \
    \"kubelet is configured to not run on a host using cgroup v1\".",
)
.done(
    "Names the line of the kernel's command line, or the distribution's default. Adds \
    `failCgroupV1: false` to the kubelet's configuration after asking \
    (`--allow cgroup-v1.refused`). To move to cgroup v2 is the better mend, and it changes how \
    every container is started: that is left to the administrator.",
)
.source(
    "SetDefaults_KubeletConfiguration in pkg/kubelet/apis/config/v1beta1/defaults.go; \
    cg_is_unified_wanted in systemd's src/shared/cgroup-setup.c",
)
.logged(&["kubelet is configured to not run on a host using cgroup v1"]);

/// See the module.
pub const CHECK: Check = Check {
    id: "cgroup-v1",
    about: "a boot with cgroup v1, which kubelets from 1.35 on refuse",
    modes: &[REFUSED],
    roles: &[Role::ControlPlane, Role::Worker, Role::Etcd],
    after: &["kubelet-config", "cgroup-driver"],
    run,
};

/// From here on the kubelet refuses cgroup v1 by default.
const REFUSES: Version = Version {
    major: 1,
    minor: 35,
    patch: 0,
};

/// The field of KubeletConfiguration.
const FIELD: &str = "failCgroupV1";

/// From this systemd on cgroup v1 needs more than the command line.
const SYSTEMD: u32 = 256;

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    if !refuses(guest, node) {
        return Ok(Vec::new());
    }
    let Some(boot) = of_boot(guest) else {
        return Ok(Vec::new());
    };
    let title = "the next boot mounts cgroup v1, and the kubelet does not run on it";
    let finding = Finding::new(REFUSED, title).with_evidence(boot.at, boot.saw);
    let finding = if boot.is_sure {
        finding
    } else {
        finding.with_severity(Severity::Note).with_advice(
            "Which boot entry is started could not be told: it may be cgroup v2 after all.",
        )
    };
    let finding = finding.with_advice(
        "The kubelet exits at its start (failCgroupV1).\nThe lasting mend is cgroup v2: \
         systemd.unified_cgroup_hierarchy=1 on the kernel's command line.",
    );
    Ok(vec![match Allow::new(guest, node) {
        Some(remedy) => finding.with_remedy(remedy),
        None => finding.with_advice(
            "To run on cgroup v1 for now, set failCgroupV1: false in the kubelet's configuration, \
             and take --fail-cgroupv1 from its command line.",
        ),
    }])
}

/// A flag wins over the configuration; without either the version decides. An unknown version
/// refuses nothing.
fn refuses(guest: &Guest, node: &Node) -> bool {
    if let Some(value) = node.kubelet.flag("--fail-cgroupv1") {
        return value != "false";
    }
    // A folder of parts may say anything; the parts are merged over the configuration.
    if let Some(folder) = node.kubelet.flag("--config-dir") {
        let folder = GuestPath::new(folder);
        let parts = guest.read_dir(&folder).unwrap_or_default();
        let says = |text: String| text.contains(FIELD);
        let mut texts = parts.iter().map(|part| folder.join(&part.name));
        if texts.any(|path| guest.read_text(&path).is_ok_and(says)) {
            return false;
        }
    }
    let by_default = node
        .kubelet_version
        .value
        .is_some_and(|version| version >= REFUSES);
    let said = yaml::at(&node.kubelet.config, &[FIELD]).and_then(Value::as_bool);
    !node.kubelet.config.is_null() && by_default && said.unwrap_or(true)
}

/// Why the boot mounts cgroup v1.
struct Boot {
    at: Origin,
    saw: String,
    is_sure: bool,
}

/// `None` where it mounts v2, or where that is not known.
fn of_boot(guest: &Guest) -> Option<Boot> {
    let system = System::read(guest);
    if !system.follows {
        return None;
    }
    let lines = boot_lines(guest);
    let wants_v1 = |line: &(Origin, String)| said(&line.1).or(system.default_v1) == Some(true);
    let Some(first) = lines.iter().find(|line| wants_v1(line)) else {
        return system
            .default_v1
            .filter(|v1| *v1 && lines.is_empty())
            .map(|_| Boot {
                at: system.at,
                saw: "cgroup v1 is this release's default; no boot entry was found".to_owned(),
                is_sure: false,
            });
    };
    let is_sure = lines.iter().all(wants_v1);
    Some(match said(&first.1) {
        Some(_) => Boot {
            at: first.0.clone(),
            saw: "systemd.unified_cgroup_hierarchy=0".to_owned(),
            is_sure,
        },
        None => Boot {
            at: system.at,
            saw: "cgroup v1 is this release's default, and the kernel's command line says nothing \
                  else"
                .to_owned(),
            is_sure,
        },
    })
}

/// Whether a command line asks for v1 (true) or v2 (false); the last word counts.
fn said(line: &str) -> Option<bool> {
    const KEY: &str = "systemd.unified_cgroup_hierarchy";
    let mut hierarchy = None;
    let mut is_v1_off = false;
    for word in line.split_ascii_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, "1"));
        match key {
            KEY => {
                hierarchy = match value.to_ascii_lowercase().as_str() {
                    "0" | "no" | "n" | "false" | "f" | "off" => Some(true),
                    "1" | "yes" | "y" | "true" | "t" | "on" => Some(false),
                    _ => hierarchy,
                }
            }
            "cgroup_no_v1" => is_v1_off = value == "all",
            _ => {}
        }
    }
    hierarchy.or(is_v1_off.then_some(false))
}

/// What the distribution's systemd does.
struct System {
    at: Origin,
    /// Whether v1 is mounted where the command line says nothing; `None` where it is not known.
    default_v1: Option<bool>,
    /// Whether it follows the command line.
    follows: bool,
}

/// Families, the first release with v2 by default, and the first with systemd 256 or later.
type Release = (u32, u32);
const RELEASES: [(&[&str], Release, Release); 4] = [
    (&["debian"], (11, 0), (13, 0)),
    (&["ubuntu"], (21, 10), (24, 10)),
    (
        &["rhel", "centos", "rocky", "almalinux", "ol"],
        (9, 0),
        (10, 0),
    ),
    (&["amzn"], (2023, 0), (2024, 0)),
];

impl System {
    fn read(guest: &Guest) -> Self {
        let (path, pairs) =
            os_release(guest).unwrap_or_else(|| (GuestPath::new("/etc/os-release"), Vec::new()));
        let get = |key: &str| {
            let pair = pairs.iter().rev().find(|(name, _)| name == key);
            pair.map(|(_, value)| value.as_str())
        };
        let release = get("VERSION_ID").and_then(|text| {
            let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let rule = RELEASES
            .iter()
            .find(|(ids, _, _)| get("ID").is_some_and(|id| ids.contains(&id)));
        let known = rule.zip(release);
        let by_package = systemd_version(guest).map(|version| version < SYSTEMD);
        let by_release = known.map(|((_, _, obsolete), release): (_, Release)| release < *obsolete);
        Self {
            at: path.into(),
            default_v1: known.map(|((_, v2, _), release)| release < *v2),
            follows: by_package.or(by_release).unwrap_or(false),
        }
    }
}

/// The first number of the package's version: `245.4-4ubuntu3`, `252-51.el9`.
fn systemd_version(guest: &Guest) -> Option<u32> {
    let version = package_version(guest, "systemd")?;
    let version = version
        .split_once(':')
        .map_or(version.as_str(), |(_, rest)| rest);
    let digits = version
        .split(|letter: char| !letter.is_ascii_digit())
        .next()?;
    digits.parse().ok()
}

/// The kubelet's configuration lets it run on cgroup v1.
#[derive(Debug)]
struct Allow {
    path: GuestPath,
}

impl Allow {
    /// `None` where a flag decides, or the configuration cannot be edited by its lines.
    fn new(guest: &Guest, node: &Node) -> Option<Self> {
        let path = node.kubelet.config_path.value.clone()?;
        let is_decided = node.kubelet.flag("--fail-cgroupv1").is_some();
        let can_be_edited = || allowed(&guest.read_text(&path).ok()?).ok();
        (!is_decided && can_be_edited().is_some()).then_some(Self { path })
    }
}

/// The configuration with `failCgroupV1: false`; every other line stays.
fn allowed(text: &str) -> Result<String> {
    let new = format!("{FIELD}: false");
    let is_field = |line: &&str| line.starts_with(&format!("{FIELD}:"));
    let mut lines: Vec<&str> = text.split('\n').collect();
    match lines.iter_mut().find(|line| is_field(line)) {
        Some(line) => *line = &new,
        None => {
            let end = lines.len() - usize::from(text.ends_with('\n'));
            lines.insert(end, &new);
        }
    }
    let mut edited = lines.join("\n");
    if !edited.ends_with('\n') {
        edited.push('\n');
    }
    let read = yaml::parse(edited.as_bytes()).context("reading the edited configuration")?;
    let is_said = yaml::at(&read, &[FIELD]) == Some(&Value::Bool(false));
    ensure!(is_said, "the configuration cannot be edited by its lines");
    Ok(edited)
}

impl Remedy for Allow {
    fn kind(&self) -> &'static str {
        "allow-cgroup-v1"
    }

    fn summary(&self) -> String {
        format!(
            "let the kubelet run on cgroup v1: {FIELD}: false in {}",
            self.path
        )
    }

    fn asks_first(&self) -> bool {
        true
    }

    fn fields(&self) -> Map<String, Value> {
        Map::from_iter([("path".to_owned(), json!(self.path.to_string()))])
    }

    fn prepare(&self, context: &Context<'_>) -> Result<Prepared> {
        let mut draft = context.draft();
        let text = allowed(&draft.guest.read_text(&self.path)?)?;
        draft.write(&self.path, text, 0o600)?;
        Ok(draft.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};
    use crate::tree::MemoryTree;

    const CONFIG: &str = "/var/lib/kubelet/config.yaml";

    fn node(kubelet: &str, os: &str) -> MemoryTree {
        let status = format!("Package: kubelet\nStatus: hold ok installed\nVersion: {kubelet}\n\n");
        control_plane()
            .file("/var/lib/dpkg/status", status)
            .file("/etc/os-release", os)
    }

    fn grub(tree: MemoryTree, options: &str) -> MemoryTree {
        let text = format!(
            "set default=\"0\"\nmenuentry 'Ubuntu' --class ubuntu {{\n\tlinux\t/boot/vmlinuz-5.15.0 \
             root=UUID=1 ro  {options}\n\tinitrd\t/boot/initrd.img-5.15.0\n}}\n\
             menuentry 'Ubuntu (recovery mode)' {{\n\tlinux\t/boot/vmlinuz-5.15.0 root=UUID=1 ro \
             recovery nomodeset\n}}\n"
        );
        tree.file("/boot/grub/grub.cfg", text)
    }

    const JAMMY: &str = "ID=ubuntu\nVERSION_ID=\"22.04\"\n";
    const FOCAL: &str = "ID=ubuntu\nVERSION_ID=\"20.04\"\n";
    const V1: &str = "quiet systemd.unified_cgroup_hierarchy=0";
    const V2: &str = "quiet systemd.unified_cgroup_hierarchy=1";

    #[test]
    fn the_command_line_asks_for_v1_and_the_kubelet_is_let_run_after_asking() {
        let tree = grub(node("1.35.1-1.1", JAMMY), V1);
        let found = Bench::new(CHECK).found(tree.clone());
        assert_eq!(found[0].severity, Severity::StopsBoot);
        assert_eq!(found[0].evidence[0].place(), "/boot/grub/grub.cfg:3");
        assert!(found[0].remedies[0].asks_first());
        let mended = Bench::new(CHECK).mended(tree);
        assert_eq!(
            mended.read_text(&GuestPath::new(CONFIG)).unwrap(),
            "kind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n\
             failCgroupV1: false\n"
        );
    }

    #[test]
    fn a_release_with_v1_by_default_is_found() {
        let tree = grub(node("1.36.0-1.1", FOCAL), "quiet").file(
            CONFIG,
            "kind: KubeletConfiguration\nfailCgroupV1: true\nzz: 1",
        );
        let mended = Bench::new(CHECK).mended(tree);
        assert_eq!(
            mended.read_text(&GuestPath::new(CONFIG)).unwrap(),
            "kind: KubeletConfiguration\nfailCgroupV1: false\nzz: 1\n"
        );
        // No boot entry is seen: it may say otherwise.
        let found = Bench::new(CHECK).found(node("1.36.0-1.1", FOCAL));
        assert_eq!(found[0].severity, Severity::Note);
    }

    #[test]
    fn boot_loader_entries_are_read() {
        let rocky = "ID=\"rocky\"\nVERSION_ID=\"9.4\"\n";
        let tree = node("1.35.0-1.1", rocky)
            .file(
                "/boot/loader/entries/0123-5.14.0.conf",
                "title Rocky\nlinux /vmlinuz-5.14.0\noptions root=/dev/mapper/r $kernelopts\n",
            )
            .file(
                "/boot/grub2/grubenv",
                "# GRUB Environment Block\nkernelopts=ro systemd.unified_cgroup_hierarchy=no\n###",
            );
        let found = Bench::new(CHECK).found(tree);
        let place = found[0].evidence[0].place();
        assert_eq!(place, "/boot/loader/entries/0123-5.14.0.conf:3");
    }

    #[test]
    fn v2_older_kubelets_and_what_is_allowed_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(grub(node("1.35.0-1.1", JAMMY), "quiet"));
        bench.silent(grub(node("1.35.0-1.1", FOCAL), V2));
        bench.silent(grub(node("1.35.0-1.1", FOCAL), "cgroup_no_v1=all"));
        bench.silent(grub(node("1.34.2-1.1", JAMMY), V1));
        bench.silent(grub(node("1.35.0-1.1", "ID=nobody\n"), V1));
        bench.silent(grub(node("1.35.0-1.1", "ID=debian\nVERSION_ID=13\n"), V1));
        bench.silent(
            grub(node("1.35.0-1.1", JAMMY), V1)
                .file(CONFIG, "kind: KubeletConfiguration\nfailCgroupV1: false\n"),
        );
        bench.silent(grub(node("1.35.0-1.1", JAMMY), V1).file(
            "/var/lib/kubelet/kubeadm-flags.env",
            "KUBELET_KUBEADM_ARGS=\"--fail-cgroupv1=false\"\n",
        ));
        bench.silent(
            grub(node("1.35.0-1.1", JAMMY), V1)
                .file(
                    "/var/lib/kubelet/kubeadm-flags.env",
                    "KUBELET_KUBEADM_ARGS=\"--config-dir=/etc/kubelet.d\"\n",
                )
                .file("/etc/kubelet.d/10.conf", "failCgroupV1: false\n"),
        );
    }
}
