//! What Kubernetes keeps in etcd: the kind of an object, and which ones are secret.

use std::collections::BTreeMap;

use crate::etcd::format::proto::{Value, fields};

/// What objects in protobuf begin with.
const MAGIC: &[u8] = b"k8s\0";
/// What values begin with that the API server encrypts (apiserver/pkg/storage/value/encrypt).
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// `v1 Secret`, where the value says it (runtime.Unknown {1: TypeMeta {1: apiVersion, 2: kind}}, or
/// JSON).
pub fn kind(value: &[u8]) -> Option<String> {
    let (version, kind) = match value.strip_prefix(MAGIC) {
        Some(unknown) => in_protobuf(unknown)?,
        None => in_json(value)?,
    };
    let plain = |text: &str| {
        !text.is_empty() && text.len() < 100 && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    (plain(&version) && plain(&kind)).then(|| format!("{version} {kind}"))
}

fn in_protobuf(unknown: &[u8]) -> Option<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let (mut version, mut kind) = (None, None);
    for field in fields(unknown) {
        let (number, value) = field.ok()?;
        if number != 1 {
            continue;
        }
        for field in fields(value.bytes().ok()?) {
            match field.ok()? {
                (1, Value::Bytes(bytes)) => version = text(bytes),
                (2, Value::Bytes(bytes)) => kind = text(bytes),
                _ => {}
            }
        }
        break;
    }
    Some((version?, kind?))
}

fn in_json(value: &[u8]) -> Option<(String, String)> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TypeMeta {
        api_version: String,
        kind: String,
    }
    if value.first() != Some(&b'{') {
        return None;
    }
    let meta: TypeMeta = serde_json::from_slice(value).ok()?;
    Some((meta.api_version, meta.kind))
}

/// The runtime.Unknown of a value in protobuf.
pub(super) fn protobuf(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(MAGIC)
}

/// Whether the API server encrypted the value.
pub fn is_encrypted(value: &[u8]) -> bool {
    value.starts_with(ENCRYPTED)
}

/// The texts of a ConfigMap's `data`; `None` where the value is none. The API server takes no
/// object of more than 1.5 MiB.
pub fn config_map(value: &[u8]) -> Option<BTreeMap<String, String>> {
    if kind(value)? != "v1 ConfigMap" {
        return None;
    }
    match value.strip_prefix(MAGIC) {
        Some(unknown) => map_in_protobuf(unknown),
        None => {
            #[derive(serde::Deserialize)]
            struct ConfigMap {
                #[serde(default)]
                data: Option<BTreeMap<String, String>>,
            }
            serde_json::from_slice::<ConfigMap>(value).ok()?.data
        }
    }
}

/// runtime.Unknown {2: raw}, ConfigMap {2: data, each {1: key, 2: value}} (k8s.io/api/core/v1
/// generated.proto).
fn map_in_protobuf(unknown: &[u8]) -> Option<BTreeMap<String, String>> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let mut map = BTreeMap::new();
    for field in fields(unknown) {
        let (2, Value::Bytes(raw)) = field.ok()? else {
            continue;
        };
        for field in fields(raw) {
            let (2, Value::Bytes(entry)) = field.ok()? else {
                continue;
            };
            let (mut key, mut content) = (String::new(), String::new());
            for field in fields(entry) {
                match field.ok()? {
                    (1, Value::Bytes(bytes)) => key = text(bytes)?,
                    (2, Value::Bytes(bytes)) => content = text(bytes)?,
                    _ => {}
                }
            }
            map.insert(key, content);
        }
    }
    Some(map)
}

/// Whether a key or its value is a Secret's: neither is printed unless asked for by its own flag.
pub fn is_secret(key: &[u8], kind: Option<&str>) -> bool {
    let in_secrets = key
        .split(|byte| *byte == b'/')
        .any(|part| part == b"secrets");
    in_secrets || kind.is_some_and(|kind| kind.ends_with(" Secret"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_secrets() {
        let value = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Secret\x12\x00";
        assert_eq!(kind(value).as_deref(), Some("v1 Secret"));
        assert_eq!(
            kind(br#"{"kind":"Lease","apiVersion":"coordination.k8s.io/v1"}"#).as_deref(),
            Some("coordination.k8s.io/v1 Lease")
        );
        assert_eq!(kind(b"plain"), None);
        assert!(
            is_secret(b"/registry/secrets/default/x", None) && is_secret(b"/x", Some("v1 Secret"))
        );
        assert!(!is_secret(
            b"/registry/configmaps/secret",
            Some("v1 ConfigMap")
        ));
    }

    #[test]
    fn config_maps_of_both_forms() {
        use crate::etcd::format::proto::put_bytes;
        let message = |parts: &[(u32, &[u8])]| {
            let mut out = Vec::new();
            parts
                .iter()
                .for_each(|(field, bytes)| put_bytes(&mut out, *field, bytes));
            out
        };
        let entry = |key: &str, value: &str| message(&[(1, key.as_bytes()), (2, value.as_bytes())]);
        let raw = message(&[
            (1, b"\x0a\x01m"),
            (2, &entry("a", "1")),
            (2, &entry("b", "")),
            (3, b"binary"),
        ]);
        let unknown = message(&[
            (1, &message(&[(1, b"v1"), (2, b"ConfigMap")])),
            (2, &raw),
            (3, b""),
            (4, b""),
        ]);
        let value = [MAGIC, &unknown].concat();
        let expected = BTreeMap::from([
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), String::new()),
        ]);
        assert_eq!(config_map(&value), Some(expected));
        for length in 0..value.len() {
            let cut = config_map(value.get(..length).unwrap_or_default());
            assert!(cut.is_none_or(|map| map.len() <= 2));
        }
        let json = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{},"data":{"a":"1"}}"#;
        assert_eq!(
            config_map(json).unwrap().get("a").map(String::as_str),
            Some("1")
        );
        assert_eq!(config_map(b"k8s:enc:aescbc:v1:key1:x"), None);
        assert!(is_encrypted(b"k8s:enc:aescbc:v1:key1:x") && !is_encrypted(&value));
    }
}
