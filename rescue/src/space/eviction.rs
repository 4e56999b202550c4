//! The kubelet's own limits: below them it evicts pods, taints the node and removes images.
//!
//! Rules as in kubernetes `pkg/kubelet/eviction`: `--eviction-hard` replaces `evictionHard` of the
//! config file, which replaces the defaults as a whole (a signal that is not named has no limit)
//! unless `mergeDefaultEvictionSettings` is set.

use std::fmt;

use serde_json::Value;

use crate::guest::{Guest, GuestPath};
use crate::node::{Node, Role};
use crate::tree::{TreeError, Usage};

/// What the kubelet measures. Memory and process limits do not concern a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Signal {
    /// Bytes on the file system of the kubelet's root folder.
    #[serde(rename = "nodefs.available")]
    NodefsAvailable,
    /// Inodes on it.
    #[serde(rename = "nodefs.inodesFree")]
    NodefsInodesFree,
    /// Bytes on the file system of the container images.
    #[serde(rename = "imagefs.available")]
    ImagefsAvailable,
    /// Inodes on it.
    #[serde(rename = "imagefs.inodesFree")]
    ImagefsInodesFree,
}

impl Signal {
    /// The kubelet's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [
            Self::NodefsAvailable,
            Self::NodefsInodesFree,
            Self::ImagefsAvailable,
            Self::ImagefsInodesFree,
        ]
        .into_iter()
        .find(|signal| signal.name() == name.trim())
    }

    /// Whether it counts inodes (else bytes).
    pub fn counts_inodes(self) -> bool {
        matches!(self, Self::NodefsInodesFree | Self::ImagefsInodesFree)
    }

    /// Whether it is measured on the images' file system (else on the kubelet's).
    pub fn is_imagefs(self) -> bool {
        matches!(self, Self::ImagefsAvailable | Self::ImagefsInodesFree)
    }
}

/// A limit: a share of the whole, or an amount.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Per cent of the file system's bytes or inodes.
    Percent(f64),
    /// Bytes or inodes.
    Amount(u64),
}

impl Limit {
    /// The limit as an amount, of `total` bytes or inodes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => percent_of(total, percent),
            Self::Amount(amount) => amount,
        }
    }
}

/// `percent` of `total`, rounded up, so that "at least so much" is never missed by a fraction.
pub fn percent_of(total: u64, percent: f64) -> u64 {
    (total as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil() as u64
}

/// One limit of this kubelet.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// Below this the kubelet acts.
    pub limit: Limit,
    /// As it is written: `10%`, `1Gi`.
    pub written: String,
    /// `evictionSoft`: the kubelet waits for a grace period first.
    pub soft: bool,
    /// Where it was read: a guest path, a flag, "the kubelet's default".
    pub source: String,
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}<{}", self.signal.name(), self.written)
    }
}

/// The limits of one node and where they apply.
#[derive(Debug, Clone, Default)]
pub struct Eviction {
    /// Hard ones first.
    pub thresholds: Vec<Threshold>,
    /// `imageGCHighThresholdPercent`: above so much use the kubelet removes images nobody runs. 100
    /// switches it off.
    pub image_gc_high_percent: f64,
    /// What was written but cannot be understood, one sentence each; the kubelet refuses to start
    /// on such a value.
    pub malformed: Vec<String>,
}

/// `imageGCHighThresholdPercent` where the config does not say (kubelet config v1beta1 defaults).
const IMAGE_GC_HIGH_DEFAULT: f64 = 85.0;

/// kubernetes `pkg/kubelet/eviction/defaults_linux.go`; `imagefs.inodesFree` came with 1.31, where
/// it repeats what `nodefs` says.
const DEFAULTS: [(Signal, &str); 3] = [
    (Signal::NodefsAvailable, "10%"),
    (Signal::NodefsInodesFree, "5%"),
    (Signal::ImagefsAvailable, "15%"),
];

/// k3s and RKE2 start their kubelet with these
/// (`--eviction-hard=imagefs.available<5%,nodefs.available<5%`).
const K3S_DEFAULTS: [(Signal, &str); 2] = [
    (Signal::NodefsAvailable, "5%"),
    (Signal::ImagefsAvailable, "5%"),
];

impl Eviction {
    /// The limits of `node`; none where there is no kubelet.
    pub fn read(node: &Node) -> Self {
        match node.role.value {
            Some(Role::NotKubernetes) => Self {
                image_gc_high_percent: 100.0,
                ..Self::default()
            },
            Some(Role::OtherDistribution) => {
                let mut eviction = Self {
                    image_gc_high_percent: IMAGE_GC_HIGH_DEFAULT,
                    ..Self::default()
                };
                eviction.add_written(&K3S_DEFAULTS, "the distribution's default");
                eviction
            }
            _ => Self::of_kubelet(
                node.kubelet.flag("--eviction-hard"),
                node.kubelet.flag("--eviction-soft"),
                &node.kubelet.config,
                &node
                    .kubelet
                    .config_path
                    .value
                    .as_ref()
                    .map_or_else(|| "its config".into(), ToString::to_string),
            ),
        }
    }

    /// From the two flags and the parsed config (`Null` where there is none); `config_path` is for
    /// people.
    fn of_kubelet(
        hard_flag: Option<&str>,
        soft_flag: Option<&str>,
        config: &Value,
        config_path: &str,
    ) -> Self {
        let high = config
            .get("imageGCHighThresholdPercent")
            .and_then(Value::as_f64);
        let mut eviction = Self {
            image_gc_high_percent: high.unwrap_or(IMAGE_GC_HIGH_DEFAULT),
            ..Self::default()
        };
        let merge = config
            .get("mergeDefaultEvictionSettings")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        match (
            hard_flag,
            config.get("evictionHard").and_then(Value::as_object),
        ) {
            (Some(flag), _) => eviction.add_flag(flag, false, "--eviction-hard"),
            (None, Some(map)) => {
                eviction.add_map(map, false, &format!("evictionHard in {config_path}"));
                if merge {
                    let named: Vec<Signal> =
                        map.keys().filter_map(|name| Signal::parse(name)).collect();
                    let rest: Vec<_> = DEFAULTS
                        .into_iter()
                        .filter(|(signal, _)| !named.contains(signal))
                        .collect();
                    eviction.add_written(&rest, "the kubelet's default");
                }
            }
            (None, None) => eviction.add_written(&DEFAULTS, "the kubelet's default"),
        }
        match (
            soft_flag,
            config.get("evictionSoft").and_then(Value::as_object),
        ) {
            (Some(flag), _) => eviction.add_flag(flag, true, "--eviction-soft"),
            (None, Some(map)) => {
                eviction.add_map(map, true, &format!("evictionSoft in {config_path}"))
            }
            (None, None) => {}
        }
        eviction
    }

    fn add_written(&mut self, written: &[(Signal, &str)], source: &str) {
        for (signal, value) in written {
            self.add(signal.name(), value, false, source);
        }
    }

    fn add_map(&mut self, map: &serde_json::Map<String, Value>, soft: bool, source: &str) {
        for (name, value) in map {
            match value {
                Value::String(text) => self.add(name, text, soft, source),
                other => self.add(name, &other.to_string(), soft, source),
            }
        }
    }

    /// `a<b,c<d` (quotes around it are the shell's).
    fn add_flag(&mut self, flag: &str, soft: bool, source: &str) {
        let pairs = flag
            .trim_matches(['"', '\''])
            .split(',')
            .filter(|pair| !pair.trim().is_empty());
        for pair in pairs {
            match pair.split_once('<') {
                Some((name, value)) => self.add(name, value, soft, source),
                None => self
                    .malformed
                    .push(format!("{source}: \"{}\" has no \"<\"", printable(pair))),
            }
        }
    }

    fn add(&mut self, name: &str, value: &str, soft: bool, source: &str) {
        // memory.available, pid.available and the like.
        let Some(signal) = Signal::parse(name) else {
            return;
        };
        let written = value.trim().to_owned();
        // The kubelet takes these two as "no limit" (eviction/helpers.go, parseThresholdStatement).
        if written == "0%" || written == "100%" {
            return;
        }
        match parse_limit(&written) {
            Some(limit) => {
                let source = source.to_owned();
                self.thresholds.push(Threshold {
                    signal,
                    limit,
                    written,
                    soft,
                    source,
                });
            }
            None => self.malformed.push(format!(
                "{source}: {}<{} is neither a percentage nor a quantity",
                signal.name(),
                printable(&written)
            )),
        }
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .take(60)
        .flat_map(|c| {
            if crate::base::escaping::misleads(c) {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// `10%`, `1Gi`, `500M`, `1e9`, `1024`.
fn parse_limit(text: &str) -> Option<Limit> {
    if let Some(number) = text.strip_suffix('%') {
        let percent: f64 = number.parse().ok()?;
        return (0.0..=100.0)
            .contains(&percent)
            .then_some(Limit::Percent(percent));
    }
    parse_quantity(text).map(Limit::Amount)
}

/// A Kubernetes resource quantity of at least zero, rounded up to whole units (apimachinery
/// `resource.ParseQuantity`).
fn parse_quantity(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("m", 1e-3),
        ("u", 1e-6),
        ("n", 1e-9),
    ];
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|number| (number, *factor)))
        // "E" is exa at the end and an exponent before digits, which the float parser takes care
        // of.
        .or_else(|| text.strip_suffix('E').map(|number| (number, 1e18)))
        .unwrap_or((text, 1.0));
    if !number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte))
    {
        return None;
    }
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value >= 0.0).then(|| value.ceil() as u64)
}

/// The folders whose file systems the kubelet measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// Its root folder, `--root-dir`.
    pub nodefs: GuestPath,
    /// The container runtime's folder of images.
    pub imagefs: GuestPath,
}

impl Measured {
    /// From the node's own settings, else the defaults of kubelet and runtime.
    pub fn read(guest: &Guest, node: &Node) -> Self {
        let nodefs = GuestPath::new(
            node.kubelet
                .flag("--root-dir")
                .unwrap_or("/var/lib/kubelet"),
        );
        Self {
            nodefs,
            imagefs: image_root(guest, node),
        }
    }
}

/// Where each runtime keeps images unless its config says otherwise; the first that exists where
/// the runtime is not known.
const IMAGE_ROOTS: [(&str, &str); 5] = [
    ("containerd", "/var/lib/containerd"),
    ("docker", "/var/lib/docker"),
    ("cri-dockerd", "/var/lib/docker"),
    ("cri-o", "/var/lib/containers/storage"),
    ("k3s", "/var/lib/rancher"),
];

fn image_root(guest: &Guest, node: &Node) -> GuestPath {
    let runtime = node
        .container_runtime
        .value
        .as_deref()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let named = IMAGE_ROOTS
        .iter()
        .find(|(name, _)| runtime.starts_with(name) || runtime == name.replace('-', ""));
    let configured = match named.map(|(name, _)| *name) {
        Some("docker" | "cri-dockerd") => docker_root(guest),
        Some("containerd") => containerd_root(guest),
        Some("cri-o") => crio_root(guest),
        _ => None,
    };
    if let Some(path) = configured {
        return path;
    }
    let root = named.or_else(|| {
        IMAGE_ROOTS
            .iter()
            .find(|(_, path)| guest.exists(&GuestPath::new(path)))
    });
    GuestPath::new(root.map_or("/var/lib/containerd", |(_, path)| path))
}

/// `data-root` (before 17.05: `graph`) of docker's daemon.json.
fn docker_root(guest: &Guest) -> Option<GuestPath> {
    let bytes = guest
        .read_if_there(&GuestPath::new("/etc/docker/daemon.json"))
        .ok()??;
    let config: Value = serde_json::from_slice(&bytes).ok()?;
    let root = config
        .get("data-root")
        .or_else(|| config.get("graph"))?
        .as_str()?;
    root.starts_with('/').then(|| GuestPath::new(root))
}

/// `root = "/path"` before the first table of containerd's config.toml.
fn containerd_root(guest: &Guest) -> Option<GuestPath> {
    let text = text_of(guest, "/etc/containerd/config.toml")?;
    toml_path(
        text.lines()
            .take_while(|line| !line.trim().starts_with('[')),
        "root",
    )
}

/// CRI-O's own `root` in [crio], else `graphroot` of containers/storage (crio.conf(5),
/// containers-storage.conf(5)). Both names stand in one table of their file only.
fn crio_root(guest: &Guest) -> Option<GuestPath> {
    let own =
        text_of(guest, "/etc/crio/crio.conf").and_then(|text| toml_path(text.lines(), "root"));
    own.or_else(|| {
        toml_path(
            text_of(guest, "/etc/containers/storage.conf")?.lines(),
            "graphroot",
        )
    })
}

fn text_of(guest: &Guest, path: &str) -> Option<String> {
    let bytes = guest.read_if_there(&GuestPath::new(path)).ok()??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The absolute path that the first line for `name` gives.
fn toml_path<'a>(mut lines: impl Iterator<Item = &'a str>, name: &str) -> Option<GuestPath> {
    lines.find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value
            .split('#')
            .next()
            .unwrap_or_default()
            .trim()
            .trim_matches(['"', '\'']);
        (key.trim() == name && value.starts_with('/')).then(|| GuestPath::new(value))
    })
}

/// Index into `guest.file_systems` of the one that holds `path`, or would hold it once it is made.
pub fn file_system_holding(guest: &Guest, path: &GuestPath) -> Option<usize> {
    let mut there = path.clone();
    let real = loop {
        match guest.resolve(&there) {
            Ok(real) => break real,
            Err(TreeError::NotFound(_)) if there.parent() != there => there = there.parent(),
            Err(_) => return None,
        }
    };
    let found = guest.file_system_of(&real)?;
    let index = guest
        .file_systems
        .iter()
        .position(|fs| fs.mount_point == found.mount_point)?;
    // Subvolumes of one btrfs share their bytes: they are judged together, as the first of them.
    guest.sharing_bytes(index).first().copied()
}

/// How much of `usage` the signal measures: (free, total). `None` where the file system has no
/// fixed number of inodes.
pub fn measure(signal: Signal, usage: &Usage) -> Option<(u64, u64)> {
    match signal.counts_inodes() {
        true => (usage.inodes_total > 0).then_some((usage.inodes_free, usage.inodes_total)),
        false => (usage.bytes_total > 0).then_some((usage.bytes_available, usage.bytes_total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(eviction: &Eviction) -> Vec<String> {
        eviction
            .thresholds
            .iter()
            .map(|t| format!("{t}{}", if t.soft { " soft" } else { "" }))
            .collect()
    }

    #[test]
    fn defaults_hold_where_nothing_is_written() {
        let eviction = Eviction::of_kubelet(None, None, &Value::Null, "x");
        assert_eq!(
            shown(&eviction),
            [
                "nodefs.available<10%",
                "nodefs.inodesFree<5%",
                "imagefs.available<15%"
            ]
        );
        assert_eq!(eviction.image_gc_high_percent, 85.0);
    }

    #[test]
    fn a_written_map_replaces_all_defaults() {
        let config = serde_json::json!({"evictionHard": {"nodefs.available": "1Gi", "memory.available": "100Mi"},
            "evictionSoft": {"imagefs.available": "20%"}, "imageGCHighThresholdPercent": 90});
        let eviction = Eviction::of_kubelet(None, None, &config, "/var/lib/kubelet/config.yaml");
        assert_eq!(
            shown(&eviction),
            ["nodefs.available<1Gi", "imagefs.available<20% soft"]
        );
        assert_eq!(eviction.thresholds[0].limit, Limit::Amount(1 << 30));
        assert_eq!(
            eviction.thresholds[0].source,
            "evictionHard in /var/lib/kubelet/config.yaml"
        );
        assert_eq!(eviction.image_gc_high_percent, 90.0);
    }

    #[test]
    fn merging_keeps_the_defaults_that_are_not_named() {
        let config = serde_json::json!({
            "evictionHard": {"nodefs.available": "5%"}, "mergeDefaultEvictionSettings": true
        });
        let eviction = Eviction::of_kubelet(None, None, &config, "x");
        assert_eq!(
            shown(&eviction),
            [
                "nodefs.available<5%",
                "nodefs.inodesFree<5%",
                "imagefs.available<15%"
            ]
        );
    }

    #[test]
    fn the_flag_wins_and_zero_per_cent_is_no_limit() {
        let config = serde_json::json!({"evictionHard": {"nodefs.available": "1Gi"}});
        let flag = "\"memory.available<5%,nodefs.available<2.5%,nodefs.inodesFree<0%,\
            imagefs.available<500M\"";
        let eviction = Eviction::of_kubelet(Some(flag), None, &config, "x");
        assert_eq!(
            shown(&eviction),
            ["nodefs.available<2.5%", "imagefs.available<500M"]
        );
        assert_eq!(eviction.thresholds[1].limit, Limit::Amount(500_000_000));
    }

    #[test]
    fn each_runtime_says_where_its_images_are() {
        let crio = crate::tree::MemoryTree::new()
            .file(
                "/etc/crio/crio.conf",
                "[crio]\n# root = \"/commented\"\n[crio.api]\n",
            )
            .file(
                "/etc/containers/storage.conf",
                "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/x\"\n\
                 graphroot = \"/data/images\"\n",
            );
        assert_eq!(
            crio_root(&crio.into_guest()),
            Some(GuestPath::new("/data/images"))
        );
        let own = crate::tree::MemoryTree::new()
            .file("/etc/crio/crio.conf", "[crio]\nroot = \"/own\" # here\n");
        assert_eq!(crio_root(&own.into_guest()), Some(GuestPath::new("/own")));
        let containerd = "version = 2\nroot = '/big'\n[plugins]\nroot = '/not-this'\n";
        let containerd =
            crate::tree::MemoryTree::new().file("/etc/containerd/config.toml", containerd);
        assert_eq!(
            containerd_root(&containerd.into_guest()),
            Some(GuestPath::new("/big"))
        );
    }

    #[test]
    fn nonsense_is_reported_not_guessed() {
        let eviction =
            Eviction::of_kubelet(Some("nodefs.available<lots,oops"), None, &Value::Null, "x");
        assert!(eviction.thresholds.is_empty());
        assert_eq!(eviction.malformed.len(), 2);
    }

    #[test]
    fn quantities_as_kubernetes_writes_them() {
        let cases = [
            ("1Gi", 1 << 30),
            ("1.5Ki", 1536),
            ("1e3", 1000),
            ("2E", 2_000_000_000_000_000_000),
            ("100m", 1),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_quantity(text), Some(expected), "{text}");
        }
        for text in ["", "Gi", "-1", "inf", "NaN", "1Xi", "0x10"] {
            assert_eq!(parse_quantity(text), None, "{text}");
        }
    }
}
