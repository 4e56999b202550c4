//! How a node starts etcd, as far as its files tell: by a static pod, by systemd, or inside another
//! program.

use serde_json::Value;

use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::node::{Node, flags};
use crate::systemd::{Unit, environment};

/// Units that run etcd on a machine of its own or beside a kubelet: kubespray's, Debian's and Red
/// Hat's all have this name.
const UNIT: &str = "etcd.service";

/// Environment files of such units, for units that hand them on to a container (kubespray with
/// Docker) and so are not followed.
const ENVIRONMENTS: [&str; 3] = ["/etc/etcd.env", "/etc/default/etcd", "/etc/etcd/etcd.conf"];

/// `--quota-backend-bytes` where the flag is absent, in bytes (etcd's DefaultQuotaBytes).
pub const DEFAULT_QUOTA: u64 = 2 << 30;

/// A program with etcd inside: where it keeps etcd's data, and what it offers for a broken cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding {
    /// "k3s".
    pub name: &'static str,
    /// etcd's data folder (k3s: pkg/etcd/etcd.go, DBDir).
    pub data_dir: &'static str,
    /// What mends it.
    pub tool: &'static str,
}

const EMBEDDINGS: [Embedding; 2] = [
    Embedding {
        name: "k3s",
        data_dir: "/var/lib/rancher/k3s/server/db/etcd",
        tool: "systemctl stop k3s && k3s server --cluster-reset, on the server whose disk `rescue \
            etcd status` calls newest; then remove /var/lib/rancher/k3s/server/db on the other \
            servers, and start them",
    },
    Embedding {
        name: "RKE2",
        data_dir: "/var/lib/rancher/rke2/server/db/etcd",
        tool: "systemctl stop rke2-server && rke2 server --cluster-reset, on the server whose disk \
            `rescue etcd status` calls newest; then remove /var/lib/rancher/rke2/server/db on the \
            other servers, and start them",
    },
];

/// By what etcd is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// kubeadm's manifest.
    StaticPod,
    /// systemd: the file that says how.
    Service(GuestPath),
    /// Another program, which knows more about the cluster than etcd's data says.
    Embedded(Embedding),
}

/// How etcd is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// By what.
    pub by: By,
    /// `--name` to value, the one in force last. Variables (`ETCD_NAME`) stand under the flag's
    /// name.
    options: Vec<(String, String)>,
    /// The container's image.
    pub image: Option<String>,
}

impl Launch {
    /// What a node's files say; `None` where nothing does.
    pub fn of(guest: &Guest, node: &Node) -> Option<Self> {
        let pod = node.static_pod("etcd").map(|pod| Self {
            by: By::StaticPod,
            options: pod.flags.clone(),
            image: (!pod.image.is_empty()).then(|| pod.image.clone()),
        });
        // RKE2's etcd is a static pod, too, which gets a configuration file of RKE2's.
        let by_kubeadm = pod.filter(|pod| pod.option("--config-file").is_none());
        by_kubeadm
            .or_else(|| embedded(guest))
            .or_else(|| service(guest))
    }

    /// The value of an option, `--name`.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|(option, _)| option == name)
            .map(|(_, value)| value.as_str())
    }

    /// The size in bytes at which etcd stops taking writes. Zero is its word for the default.
    pub fn quota(&self) -> u64 {
        let given = self
            .option("--quota-backend-bytes")
            .and_then(|bytes| bytes.parse().ok());
        given.filter(|bytes| *bytes > 0).unwrap_or(DEFAULT_QUOTA)
    }

    /// `--initial-advertise-peer-urls`.
    pub fn peer_urls(&self) -> Vec<String> {
        let urls = self
            .option("--initial-advertise-peer-urls")
            .unwrap_or_default();
        urls.split(',')
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

fn embedded(guest: &Guest) -> Option<Launch> {
    let embedding = EMBEDDINGS
        .iter()
        .find(|one| guest.exists(&GuestPath::new(one.data_dir).join("member")))?;
    let data_dir = vec![("--data-dir".to_owned(), embedding.data_dir.to_owned())];
    Some(Launch {
        by: By::Embedded(*embedding),
        options: data_dir,
        image: None,
    })
}

/// What the unit starts, with its environment, then what environment files and the configuration
/// file say. A flag counts more than a variable, and a configuration file is the only thing that
/// counts where it is named (etcd's server/etcdmain/config.go).
fn service(guest: &Guest) -> Option<Launch> {
    let unit = Unit::load(guest, UNIT).filter(|unit| !unit.masked);
    let mut by = unit.as_ref().and_then(|unit| unit.fragment.clone());
    let mut options = Vec::new();
    for file in ENVIRONMENTS.map(GuestPath::new) {
        let Some(variables) = guest
            .read(&file)
            .ok()
            .and_then(|bytes| environment::parse_file(&bytes).ok())
        else {
            continue;
        };
        let named: Vec<_> = variables
            .into_iter()
            .filter_map(|variable| option(&variable.name, variable.value))
            .collect();
        if !named.is_empty() {
            by = by.or(Some(file));
            options = named;
            break;
        }
    }
    if let Some(unit) = &unit {
        options.extend(
            unit.environment
                .iter()
                .filter_map(|variable| option(&variable.name, variable.value.clone())),
        );
        let words = unit.argv();
        if words
            .first()
            .is_some_and(|program| program.rsplit('/').next() == Some("etcd"))
        {
            options.extend(flags::parse(&words));
        }
    }
    let mut launch = Launch {
        by: By::Service(by?),
        options,
        image: None,
    };
    if let Some(path) = launch.option("--config-file").map(GuestPath::new) {
        let value = guest
            .read(&path)
            .ok()
            .and_then(|bytes| yaml::parse(&bytes).ok())?;
        launch.options = scalars(&value);
        launch.by = By::Service(path);
    }
    Some(launch)
}

/// `ETCD_DATA_DIR` is `--data-dir` (etcd's pkg/flags, FlagToEnv).
fn option(variable: &str, value: String) -> Option<(String, String)> {
    let name = variable
        .strip_prefix("ETCD_")?
        .to_ascii_lowercase()
        .replace('_', "-");
    (!value.is_empty()).then(|| (format!("--{name}"), value))
}

/// Sections of a configuration file whose options have the section's name as flags (etcd's
/// server/embed/config.go, securityConfig).
const SECTIONS: [(&str, &str); 2] = [
    ("client-transport-security", "--"),
    ("peer-transport-security", "--peer-"),
];

fn scalars(value: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is_set) => Some(is_set.to_string()),
        _ => None,
    };
    let under = |value: Option<&Value>, prefix: &str| -> Vec<(String, String)> {
        let pairs = value.and_then(Value::as_object).into_iter().flatten();
        pairs
            .filter_map(|(name, value)| Some((format!("{prefix}{name}"), text(value)?)))
            .collect()
    };
    let mut all = under(Some(value), "--");
    for (section, prefix) in SECTIONS {
        all.extend(under(value.get(section), prefix));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    fn of(tree: MemoryTree) -> Launch {
        let guest = tree.into_guest();
        Launch::of(&guest, &Node::read(&guest)).unwrap()
    }

    #[test]
    fn follows_kubespray_s_environment_file() {
        let env = "ETCD_DATA_DIR=/data/etcd\nETCD_NAME=etcd1\n\
            ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:2380\n\
            ETCD_QUOTA_BACKEND_BYTES=\"4294967296\"\nETCD_WAL_DIR=\n";
        let unit = "[Service]\nEnvironmentFile=-/etc/etcd.env\nExecStart=/usr/local/bin/etcd\n";
        let by_unit = of(MemoryTree::new()
            .file("/etc/etcd.env", env)
            .file("/etc/systemd/system/etcd.service", unit));
        let by_file = of(MemoryTree::new().file("/etc/etcd.env", env));
        for launch in [by_unit, by_file] {
            assert_eq!(
                (launch.option("--name"), launch.option("--wal-dir")),
                (Some("etcd1"), None)
            );
            assert_eq!(launch.option("--quota-backend-bytes"), Some("4294967296"));
            assert_eq!(launch.peer_urls(), ["https://10.0.0.1:2380"]);
        }
    }

    #[test]
    fn a_flag_counts_more_than_a_variable_and_a_configuration_file_more_than_both() {
        let unit = "[Service]\nEnvironment=ETCD_NAME=a ETCD_DATA_DIR=/a\n\
            ExecStart=/usr/bin/etcd --name b\n";
        let tree = |unit: &str| MemoryTree::new().file("/lib/systemd/system/etcd.service", unit);
        let launch = of(tree(unit));
        assert_eq!(
            (launch.option("--name"), launch.option("--data-dir")),
            (Some("b"), Some("/a"))
        );
        let unit =
            "[Service]\nExecStart=/usr/bin/etcd --config-file=/etc/etcd/etcd.yaml --name b\n";
        let launch = of(tree(unit).file(
            "/etc/etcd/etcd.yaml",
            "name: c\ndata-dir: /c\nquota-backend-bytes: 8589934592\n",
        ));
        assert_eq!(
            (
                launch.option("--name"),
                launch.option("--quota-backend-bytes")
            ),
            (Some("c"), Some("8589934592"))
        );
        assert_eq!(
            launch.by,
            By::Service(GuestPath::new("/etc/etcd/etcd.yaml"))
        );
    }

    #[test]
    fn knows_etcd_inside_other_programs() {
        let launch = of(MemoryTree::new().dir("/var/lib/rancher/rke2/server/db/etcd/member"));
        assert!(matches!(
            launch.by,
            By::Embedded(Embedding { name: "RKE2", .. })
        ));
        let guest = MemoryTree::new().into_guest();
        assert!(Launch::of(&guest, &Node::read(&guest)).is_none());
    }
}
