//! cgroup-driver: the kubelet and the container runtime arrange processes in different ways.
//!
//! Both read their configuration when they start, so that an edit shows at the next boot only. From
//! 1.31 on the kubelet asks a runtime that can tell (containerd 2.0, CRI-O 1.28:
//! KubeletCgroupDriverFromCRI), and its own setting does not matter.

use anyhow::Result;
use serde_json::Value;

use super::kubelet_setting::{SetKubeletSetting, line_of};
use crate::base::yaml;
use crate::finding::{Check, Context, Finding, Mode};
use crate::guest::{Guest, GuestPath, Origin};
use crate::node::{Node, Role, Version, containerd_files, package_version, runtime_units};

const DIFFERS: Mode = Mode::stops_boot(
    "cgroup-driver.differs",
    "the kubelet and the container runtime are set to different cgroup drivers",
)
.why(
    "No pod starts. The runtime refuses the kubelet's path: \"expected cgroupsPath to be of \
    format \\\"slice:prefix:name\\\" for systemd cgroups\"; with docker the kubelet exits: \
    \"kubelet cgroup driver … is different from docker cgroup driver\".",
)
.done(
    "Names both files. Sets `cgroupDriver` of the kubelet's configuration to the runtime's \
    after asking (`--allow cgroup-driver.differs`): which of the two was edited by mistake is \
    not known.",
)
.source(
    "https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/configure-cgroup-driver; \
    libcontainer's systemd cgroup manager",
)
.logged(&[
    "expected cgroupsPath to be of format",
    "is different from docker cgroup driver",
]);

/// See the module.
pub const CHECK: Check = Check {
    id: "cgroup-driver",
    about: "the kubelet and the container runtime set to different cgroup drivers",
    modes: &[DIFFERS],
    roles: &[Role::ControlPlane, Role::Worker],
    after: &["kubelet-config", "containerd-config"],
    run,
};

/// From here on the kubelet asks the runtime first (KubeletCgroupDriverFromCRI is on by default).
const ASKS: Version = Version {
    major: 1,
    minor: 31,
    patch: 0,
};

/// Tables of containerd's configuration that hold the runtimes: versions 3, 2 and 1.
const CONTAINERD: [&[&str]; 3] = [
    &["plugins", "io.containerd.cri.v1.runtime", "containerd"],
    &["plugins", "io.containerd.grpc.v1.cri", "containerd"],
    &["plugins", "cri", "containerd"],
];

/// What somebody is set to, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Driver {
    name: &'static str,
    who: &'static str,
    at: Option<Origin>,
    saw: String,
}

fn run(context: &Context<'_>) -> Result<Vec<Finding>> {
    let (guest, node) = (context.guest, context.node);
    let Some(runtime) = of_runtime(guest, node) else {
        return Ok(Vec::new());
    };
    let Some(kubelet) = of_kubelet(guest, node) else {
        return Ok(Vec::new());
    };
    if kubelet.name == runtime.name {
        return Ok(Vec::new());
    }
    let title = format!(
        "the kubelet uses the cgroup driver {}, and {} uses {}",
        kubelet.name, runtime.who, runtime.name
    );
    let finding = [&kubelet, &runtime]
        .into_iter()
        .fold(Finding::new(DIFFERS, title), |finding, one| {
            finding.with_evidence(one.at.clone(), &one.saw)
        });
    let finding = finding.with_advice(
        "No pod starts like this. On a system with cgroup v2 both should say systemd.",
    );
    Ok(vec![match set_driver(guest, node, &runtime) {
        Some(remedy) => finding.with_remedy(remedy),
        None => finding.with_advice(format!(
            "Set the kubelet's --cgroup-driver to {}, where it is given now.",
            runtime.name
        )),
    }])
}

fn known(name: &str) -> Option<&'static str> {
    ["systemd", "cgroupfs"].into_iter().find(|one| *one == name)
}

/// A flag wins over the configuration; without either it is cgroupfs (SetDefaults in
/// pkg/kubelet/apis/config/v1beta1/defaults.go). `None` where that cannot be read.
fn of_kubelet(guest: &Guest, node: &Node) -> Option<Driver> {
    let who = "the kubelet";
    if let Some(value) = node.kubelet.flag("--cgroup-driver") {
        return Some(Driver {
            name: known(value)?,
            who,
            at: node.kubelet.flag_origin("--cgroup-driver"),
            saw: format!("--cgroup-driver={value}"),
        });
    }
    let path = node.kubelet.config_path.value.as_ref()?;
    if node.kubelet.config.is_null() {
        return None;
    }
    match yaml::text_at(&node.kubelet.config, &["cgroupDriver"]).filter(|text| !text.is_empty()) {
        Some(value) => Some(Driver {
            name: known(value)?,
            who,
            at: line_of(guest, path, "cgroupDriver").map(|(at, _)| at),
            saw: format!("cgroupDriver: {value}"),
        }),
        None => Some(Driver {
            name: "cgroupfs",
            who,
            at: Some(path.clone().into()),
            saw: "no cgroupDriver: cgroupfs, the kubelet's default".to_owned(),
        }),
    }
}

/// What the runtime that the kubelet talks to is set to; `None` where it is not said, or where the
/// kubelet follows the runtime.
fn of_runtime(guest: &Guest, node: &Node) -> Option<Driver> {
    let (units, _) = runtime_units(guest, node);
    let has = |program: &str| units.iter().any(|unit| unit.program == program);
    if has("dockerd") {
        return of_docker(guest);
    }
    let asks = node
        .kubelet_version
        .value
        .is_none_or(|version| version >= ASKS);
    match (has("containerd"), has("crio")) {
        (true, _) if !(asks && can_tell(guest)) => of_containerd(guest),
        (_, true) if !asks => of_crio(guest),
        _ => None,
    }
}

/// Whether containerd is 2.0 or later, for all that is known.
fn can_tell(guest: &Guest) -> bool {
    let installed = ["containerd.io", "containerd"]
        .into_iter()
        .find_map(|package| package_version(guest, package));
    // An epoch may stand before the version.
    let major = installed.as_deref().and_then(|version| {
        let version = version.split_once(':').map_or(version, |(_, rest)| rest);
        version.split('.').next()?.parse::<u32>().ok()
    });
    major.is_none_or(|major| major >= 2)
}

/// Of several files the last that says it wins.
fn of_containerd(guest: &Guest) -> Option<Driver> {
    let files = containerd_files(guest);
    if files.iter().any(|file| file.toml.is_err()) {
        return None;
    }
    let mut found = None;
    for file in &files {
        let Ok(toml) = &file.toml else { continue };
        for table in CONTAINERD {
            let of = |rest: &[&str]| toml.at(&[table, rest].concat());
            let runtime = of(&["default_runtime_name"]).and_then(|item| item.as_str());
            let runtime = runtime.unwrap_or("runc");
            let item = of(&["runtimes", runtime, "options", "SystemdCgroup"])
                .or_else(|| toml.at(&["plugins", "cri", "systemd_cgroup"]));
            let Some(is_systemd) = item.and_then(|item| item.as_bool()) else {
                continue;
            };
            found = Some(Driver {
                name: if is_systemd { "systemd" } else { "cgroupfs" },
                who: "containerd",
                at: Some(file.path.clone().into()),
                saw: format!("SystemdCgroup = {is_systemd} (runtime {runtime})"),
            });
        }
    }
    found.or_else(|| default_of_containerd(guest, &files.first()?.path))
}

/// containerd 1.x uses cgroupfs where nothing is said; of later ones it is not known here.
fn default_of_containerd(guest: &Guest, path: &GuestPath) -> Option<Driver> {
    let is_known = ["containerd.io", "containerd"]
        .into_iter()
        .any(|package| package_version(guest, package).is_some());
    (is_known && !can_tell(guest)).then(|| Driver {
        name: "cgroupfs",
        who: "containerd",
        at: Some(path.clone().into()),
        saw: "no SystemdCgroup: false, the default of containerd 1.x".to_owned(),
    })
}

/// `exec-opts` of daemon.json. Without it docker decides by the cgroup version of the system.
fn of_docker(guest: &Guest) -> Option<Driver> {
    let path = GuestPath::new("/etc/docker/daemon.json");
    let settings: Value = serde_json::from_slice(&guest.read(&path).ok()?).ok()?;
    let options = settings.get("exec-opts")?.as_array()?;
    let value = options
        .iter()
        .filter_map(Value::as_str)
        .find_map(|option| option.strip_prefix("native.cgroupdriver="))?;
    Some(Driver {
        name: known(value)?,
        who: "docker",
        at: Some(path.into()),
        saw: format!("exec-opts: native.cgroupdriver={value}"),
    })
}

/// `cgroup_manager` of crio.conf and its parts, which are read in the order of their names; systemd
/// where none says it.
fn of_crio(guest: &Guest) -> Option<Driver> {
    let main = GuestPath::new("/etc/crio/crio.conf");
    let folder = GuestPath::new("/etc/crio/crio.conf.d");
    let parts = guest.read_dir(&folder).unwrap_or_default();
    let parts = parts.into_iter().map(|entry| folder.join(&entry.name));
    let mut found = None;
    for path in std::iter::once(main).chain(parts) {
        let Ok(bytes) = guest.read(&path) else {
            continue;
        };
        let toml = crate::base::toml::Toml::parse(&bytes).ok()?;
        let value = toml.at(&["crio", "runtime", "cgroup_manager"]);
        let Some(value) = value.and_then(|item| item.as_str()) else {
            continue;
        };
        found = Some(Driver {
            name: known(value)?,
            who: "CRI-O",
            saw: format!("cgroup_manager = \"{value}\""),
            at: Some(path.into()),
        });
    }
    found
}

/// The kubelet's configuration says what the runtime does; `None` where a flag decides, or there is
/// no configuration.
fn set_driver(guest: &Guest, node: &Node, runtime: &Driver) -> Option<SetKubeletSetting> {
    let path = node.kubelet.config_path.value.clone()?;
    let is_decided = node.kubelet.flag("--cgroup-driver").is_some();
    (!is_decided && guest.exists(&path)).then(|| SetKubeletSetting {
        path,
        key: "cgroupDriver",
        value: runtime.name.to_owned(),
        asks: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::bench::{Bench, control_plane};
    use crate::tree::MemoryTree;

    const CONFIG: &str = "/var/lib/kubelet/config.yaml";

    fn kubelet(driver: &str) -> MemoryTree {
        let text = format!(
            "kind: KubeletConfiguration\nstaticPodPath: /etc/kubernetes/manifests\n{driver}\
             clusterDomain: cluster.local\n"
        );
        control_plane()
            .file(CONFIG, text)
            .file(
                "/var/lib/kubelet/kubeadm-flags.env",
                "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/\
                 containerd.sock\"\n",
            )
            .file(
                "/var/lib/dpkg/status",
                "Package: kubelet\nStatus: install ok installed\nVersion: 1.28.3-1.1\n\n\
                 Package: containerd.io\nStatus: install ok installed\nVersion: 1.7.13-1\n\n",
            )
    }

    fn containerd(tree: MemoryTree, text: &str) -> MemoryTree {
        tree.file("/etc/containerd/config.toml", text)
    }

    const SYSTEMD: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.\
        runc.options]\nSystemdCgroup = true\n";

    #[test]
    fn two_drivers_are_named_and_the_kubelets_is_set_after_asking() {
        let bench = Bench::new(CHECK);
        for driver in ["cgroupDriver: cgroupfs\n", ""] {
            let tree = containerd(kubelet(driver), SYSTEMD);
            let found = bench.found(tree.clone());
            assert_eq!(found[0].mode, DIFFERS);
            assert!(found[0].remedies[0].asks_first());
            let text = bench
                .mended(tree)
                .read_text(&GuestPath::new(CONFIG))
                .unwrap();
            assert!(text.contains("cgroupDriver: systemd\n"), "{text}");
            assert!(text.contains("clusterDomain: cluster.local\n"), "{text}");
        }
        // containerd 1.x without a word uses cgroupfs.
        let tree = containerd(kubelet("cgroupDriver: systemd\n"), "version = 2\n");
        assert_eq!(bench.modes(tree), ["cgroup-driver.differs"]);
    }

    #[test]
    fn equal_drivers_and_what_is_not_known_are_no_finding() {
        let bench = Bench::new(CHECK);
        bench.silent(control_plane());
        bench.silent(containerd(kubelet("cgroupDriver: systemd\n"), SYSTEMD));
        bench.silent(containerd(
            kubelet("cgroupDriver: cgroupfs\n"),
            "version = 2\n",
        ));
        bench.silent(kubelet("cgroupDriver: systemd\n"));
        bench.silent(containerd(
            kubelet("cgroupDriver: systemd\n"),
            "version = [",
        ));
        // The kubelet asks containerd 2, whatever its own configuration says.
        let asks = containerd(kubelet("cgroupDriver: cgroupfs\n"), SYSTEMD).file(
            "/var/lib/dpkg/status",
            "Package: kubelet\nStatus: install ok installed\nVersion: 1.34.1-1.1\n\n\
             Package: containerd.io\nStatus: install ok installed\nVersion: 2.1.4-1\n\n",
        );
        bench.silent(asks);
    }

    #[test]
    fn another_runtime_of_containerd_is_read_where_it_is_the_default() {
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
            default_runtime_name = \"crun\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.\
            runtimes.crun.options]\nSystemdCgroup = true\n";
        let tree = containerd(kubelet("cgroupDriver: cgroupfs\n"), text);
        assert_eq!(Bench::new(CHECK).modes(tree), ["cgroup-driver.differs"]);
    }
}
