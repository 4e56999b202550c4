//! The nodes of a cluster, by the Node objects and the kubelets' leases that a member holds: which
//! of thirty machines belong to it, and when each was last heard of.

use time::OffsetDateTime;

use super::keys::{NoView, Selection, Trimmed, View, view};
use super::lease;
use super::member::MemberData;
use super::objects::NodeObject;
use crate::guest::Guest;

/// Kubernetes is built for 5000 nodes.
const MOST_KEYS: usize = 50_000;
const NODES: &[u8] = b"/registry/minions/";
const LEASES: &[u8] = b"/registry/leases/kube-node-lease/";

/// A node and when its kubelet was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ListedNode {
    /// What it says of itself.
    #[serde(flatten)]
    pub object: NodeObject,
    /// `renewTime` of its Lease.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_heartbeat: Option<OffsetDateTime>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct NodeList {
    /// In the order of their names.
    pub nodes: Vec<ListedNode>,
    /// Names of Node objects that cannot be read: encrypted, or damaged.
    pub unreadable: Vec<String>,
    /// The revision that they are of.
    pub revision: i64,
    /// Entries at the log's end that are not known to be agreed on.
    pub uncertain: u64,
    /// What keeps it from being what etcd will have.
    pub doubts: Vec<String>,
}

impl NodeList {
    /// Reads them from a member, its log included, in one pass over the database.
    ///
    /// # Errors
    /// [`NoView`] where its database cannot be read.
    pub fn read(guest: &Guest, data: &MemberData) -> Result<Self, NoView> {
        let prefixes = vec![NODES.to_vec(), LEASES.to_vec()];
        let selection = Selection::Trimmed(Trimmed {
            prefixes,
            trim,
            limit: MOST_KEYS,
        });
        Ok(Self::of(view(guest, data, &selection)?))
    }

    fn of(seen: View) -> Self {
        let mut list = Self {
            revision: seen.revision,
            uncertain: seen.uncertain,
            doubts: seen.doubts,
            ..Self::default()
        };
        for (key, held) in &seen.keys {
            let Some(name) = key.strip_prefix(NODES) else {
                continue;
            };
            let Some(object) = held
                .value
                .as_deref()
                .and_then(|value| serde_json::from_slice(value).ok())
            else {
                list.unreadable.push(crate::base::escaping::key(name));
                continue;
            };
            let lease = seen
                .keys
                .get(&[LEASES, name].concat())
                .and_then(|held| held.value.as_deref());
            let seconds = lease.and_then(|value| i64::from_le_bytes(value.try_into().ok()?).into());
            let last_heartbeat =
                seconds.and_then(|seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok());
            list.nodes.push(ListedNode {
                object,
                last_heartbeat,
            });
        }
        list
    }
}

/// A Node with its list of images and its conditions is up to 20 KB; a line of it is enough.
fn trim(key: &[u8], value: &[u8]) -> Vec<u8> {
    if key.starts_with(LEASES) {
        let write = lease::in_value(key, value);
        return write
            .map(|write| write.time.unix_timestamp().to_le_bytes().to_vec())
            .unwrap_or_default();
    }
    NodeObject::parse(value)
        .and_then(|node| serde_json::to_vec(&node).ok())
        .unwrap_or_default()
}
