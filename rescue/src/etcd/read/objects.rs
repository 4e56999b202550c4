//! What Node and Pod objects say, as the API server keeps them in etcd: protobuf
//! (k8s.io/api/core/v1 and apimachinery's meta/v1 generated.proto) or JSON. Only what is asked for
//! is taken, and no more of it than the API server itself would let in.

use std::collections::BTreeMap;

use super::kubernetes::{kind, protobuf};
use crate::etcd::format::proto::{Value, fields};

/// A name or an address of Kubernetes is no longer (RFC 1123 subdomain).
const LONGEST: usize = 253;
/// Addresses and networks of one node; the kubelet reports a few.
const MOST: usize = 16;
/// Labels with the role behind them, and kubespray's and older kubeadm's form (kubectl's describe:
/// findNodeRoles).
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE: &str = "kubernetes.io/role";

/// A Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: String,
    /// From its labels: `control-plane`, `master` …; empty for most workers.
    pub roles: Vec<String>,
    /// `status.addresses` of the type InternalIP.
    pub internal_ips: Vec<String>,
    /// That of the type Hostname.
    pub hostname: String,
    /// `v1.20.2`.
    pub kubelet_version: String,
    /// `status.nodeInfo.machineID`: /etc/machine-id when the kubelet last started.
    pub machine_id: String,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<String>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
}

impl NodeObject {
    /// Reads one; `None` where the value is no Node, or an encrypted one.
    pub fn parse(value: &[u8]) -> Option<Self> {
        if kind(value)? != "v1 Node" {
            return None;
        }
        let mut node = match protobuf(value) {
            Some(unknown) => Self::in_protobuf(message(unknown, 2)?)?,
            None => Self::in_json(value)?,
        };
        node.roles.sort();
        node.roles.dedup();
        (!node.name.is_empty()).then_some(node)
    }

    /// Node {1: ObjectMeta {1: name, 11: labels}, 2: NodeSpec {1: podCIDR, 4: unschedulable, 7:
    /// podCIDRs}, 3: NodeStatus {5: addresses, 7: NodeSystemInfo {1: machineID, 7:
    /// kubeletVersion}}}.
    fn in_protobuf(raw: &[u8]) -> Option<Self> {
        let mut node = Self::default();
        for field in fields(message(raw, 1)?) {
            match field.ok()? {
                (1, Value::Bytes(bytes)) => node.name = text(bytes)?,
                (11, Value::Bytes(entry)) => node.label(&pair(entry)?),
                _ => {}
            }
        }
        let mut first = None;
        for field in fields(message(raw, 2).unwrap_or_default()) {
            match field.ok()? {
                (1, Value::Bytes(bytes)) => first = text(bytes),
                (4, Value::Varint(number)) => node.unschedulable = number != 0,
                (7, Value::Bytes(bytes)) => push(&mut node.pod_cidrs, text(bytes)),
                _ => {}
            }
        }
        if node.pod_cidrs.is_empty() {
            push(
                &mut node.pod_cidrs,
                first.filter(|network| !network.is_empty()),
            );
        }
        for field in fields(message(raw, 3).unwrap_or_default()) {
            match field.ok()? {
                (5, Value::Bytes(entry)) => {
                    let (kind, address) = pair(entry)?;
                    node.address(&kind, address);
                }
                (7, Value::Bytes(info)) => node.info(info)?,
                _ => {}
            }
        }
        Some(node)
    }

    fn info(&mut self, info: &[u8]) -> Option<()> {
        for field in fields(info) {
            match field.ok()? {
                (1, Value::Bytes(bytes)) => self.machine_id = text(bytes)?,
                (7, Value::Bytes(bytes)) => self.kubelet_version = text(bytes)?,
                _ => {}
            }
        }
        Some(())
    }

    fn in_json(value: &[u8]) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        let text = |path: &str| {
            value
                .pointer(path)
                .and_then(serde_json::Value::as_str)
                .map(short)
                .unwrap_or_default()
        };
        let mut node = Self {
            name: text("/metadata/name")?,
            kubelet_version: text("/status/nodeInfo/kubeletVersion")?,
            machine_id: text("/status/nodeInfo/machineID")?,
            unschedulable: value
                .pointer("/spec/unschedulable")
                .and_then(serde_json::Value::as_bool)
                .unwrap_or(false),
            ..Self::default()
        };
        for (key, label) in value
            .pointer("/metadata/labels")
            .and_then(serde_json::Value::as_object)
            .into_iter()
            .flatten()
        {
            node.label(&(
                short(key).unwrap_or_default(),
                label.as_str().and_then(short).unwrap_or_default(),
            ));
        }
        let list = |path: &str| {
            value
                .pointer(path)
                .and_then(serde_json::Value::as_array)
                .into_iter()
                .flatten()
        };
        for network in list("/spec/podCIDRs") {
            push(&mut node.pod_cidrs, network.as_str().and_then(short));
        }
        for address in list("/status/addresses") {
            let of = |name: &str| address.get(name)?.as_str().and_then(short);
            node.address(&of("type")?, of("address")?);
        }
        Some(node)
    }

    fn label(&mut self, (key, value): &(String, String)) {
        let role = match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => role,
            None if key == ROLE => value,
            None => return,
        };
        push(
            &mut self.roles,
            Some(role.to_owned()).filter(|role| !role.is_empty()),
        );
    }

    fn address(&mut self, kind: &str, address: String) {
        match kind {
            "InternalIP" => push(&mut self.internal_ips, Some(address)),
            "Hostname" => self.hostname = address,
            _ => {}
        }
    }
}

/// The annotations of a Pod; `None` where the value is none. A Pod may carry secrets elsewhere,
/// which is not looked at.
pub fn pod_annotations(value: &[u8]) -> Option<BTreeMap<String, String>> {
    if kind(value)? != "v1 Pod" {
        return None;
    }
    let mut found = BTreeMap::new();
    let Some(unknown) = protobuf(value) else {
        let value: serde_json::Value = serde_json::from_slice(value).ok()?;
        let all = value
            .pointer("/metadata/annotations")
            .and_then(serde_json::Value::as_object);
        for (key, value) in all.into_iter().flatten() {
            found.extend(value.as_str().map(|value| (key.clone(), value.to_owned())));
        }
        return Some(found);
    };
    // Pod {1: ObjectMeta {12: annotations}}.
    for field in fields(message(message(unknown, 2)?, 1)?) {
        if let (12, Value::Bytes(entry)) = field.ok()? {
            let parts = |number| {
                message(entry, number).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
            };
            found.insert(parts(1)?, parts(2).unwrap_or_default());
        }
    }
    Some(found)
}

/// The first field of this number that is a message, a string or bytes.
fn message(of: &[u8], wanted: u32) -> Option<&[u8]> {
    for field in fields(of) {
        if let (number, Value::Bytes(bytes)) = field.ok()?
            && number == wanted
        {
            return Some(bytes);
        }
    }
    None
}

/// An entry of a map, or an address with its type: {1: …, 2: …}.
fn pair(entry: &[u8]) -> Option<(String, String)> {
    let part = |number| message(entry, number).map_or_else(|| Some(String::new()), text);
    Some((part(1)?, part(2)?))
}

fn text(bytes: &[u8]) -> Option<String> {
    short(std::str::from_utf8(bytes).ok()?)
}

/// What is longer, or holds what a terminal would obey, is no name of Kubernetes.
fn short(text: &str) -> Option<String> {
    Some(
        if text.len() <= LONGEST && !text.chars().any(char::is_control) {
            text.to_owned()
        } else {
            String::new()
        },
    )
}

fn push(into: &mut Vec<String>, text: Option<String>) {
    if into.len() < MOST {
        into.extend(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};

    fn made(parts: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        parts
            .iter()
            .for_each(|(field, bytes)| put_bytes(&mut out, *field, bytes));
        out
    }

    fn kept(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = made(&[(1, b"v1"), (2, kind.as_bytes())]);
        [b"k8s\0".as_slice(), &made(&[(1, &meta), (2, raw)])].concat()
    }

    #[test]
    fn nodes_of_both_forms() {
        let label = made(&[(1, b"node-role.kubernetes.io/control-plane"), (2, b"")]);
        let other = made(&[(1, b"kubernetes.io/os"), (2, b"linux")]);
        let meta = made(&[(1, b"cp1"), (11, &label), (11, &other)]);
        let mut spec = made(&[(1, b"10.244.0.0/24"), (7, b"10.244.0.0/24")]);
        put_number(&mut spec, 4, 1);
        let (ip, host) = (
            made(&[(1, b"InternalIP"), (2, b"10.0.0.1")]),
            made(&[(1, b"Hostname"), (2, b"cp1")]),
        );
        let info = made(&[(1, b"0123"), (7, b"v1.29.3")]);
        let raw = made(&[
            (1, &meta),
            (2, &spec),
            (3, &made(&[(5, &ip), (5, &host), (7, &info)])),
        ]);
        let value = kept("Node", &raw);
        let node = NodeObject::parse(&value).unwrap();
        assert_eq!(
            (
                node.name.as_str(),
                node.roles.as_slice(),
                node.internal_ips.as_slice()
            ),
            (
                "cp1",
                ["control-plane".to_owned()].as_slice(),
                ["10.0.0.1".to_owned()].as_slice()
            )
        );
        assert_eq!(
            (node.kubelet_version.as_str(), node.machine_id.as_str()),
            ("v1.29.3", "0123")
        );
        assert!(
            node.unschedulable && node.hostname == "cp1" && node.pod_cidrs == ["10.244.0.0/24"]
        );
        let json = br#"{"kind":"Node","apiVersion":"v1","metadata":{"name":"cp1","labels":{"node-role.kubernetes.io/control-plane":""}},
            "spec":{"podCIDRs":["10.244.0.0/24"],"unschedulable":true},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},
            {"type":"Hostname","address":"cp1"}],"nodeInfo":{"machineID":"0123","kubeletVersion":"v1.29.3"}}}"#;
        assert_eq!(NodeObject::parse(json), Some(node));
        for length in 0..value.len() {
            let _ = NodeObject::parse(value.get(..length).unwrap_or_default());
        }
        assert_eq!(NodeObject::parse(b"k8s:enc:aescbc:v1:key1:x"), None);
        assert_eq!(NodeObject::parse(&kept("Pod", &raw)), None);
    }

    #[test]
    fn nothing_reaches_a_terminal_that_it_would_obey() {
        let meta = made(&[(1, b"cp1")]);
        let address = made(&[(1, b"InternalIP"), (2, b"\x1b[2J")]);
        let node = NodeObject::parse(&kept(
            "Node",
            &made(&[(1, &meta), (3, &made(&[(5, &address)]))]),
        ))
        .unwrap();
        assert_eq!(node.internal_ips, [""]);
    }

    #[test]
    fn annotations_of_pods() {
        let entry = made(&[(1, b"a"), (2, b"1")]);
        let value = kept("Pod", &made(&[(1, &made(&[(1, b"p"), (12, &entry)]))]));
        let expected = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert_eq!(pod_annotations(&value), Some(expected.clone()));
        let json = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"annotations":{"a":"1"}}}"#;
        assert_eq!(pod_annotations(json), Some(expected));
    }
}
