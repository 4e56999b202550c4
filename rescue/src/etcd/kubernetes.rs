//! What Kubernetes keeps in etcd: the kind of an object, and which ones are secret.

use super::proto::{Value, fields};

/// What objects in protobuf begin with.
const MAGIC: &[u8] = b"k8s\0";

/// `v1 Secret`, where the value says it (runtime.Unknown {1: TypeMeta {1: apiVersion, 2: kind}}, or JSON).
pub fn kind(value: &[u8]) -> Option<String> {
    let (version, kind) = match value.strip_prefix(MAGIC) {
        Some(unknown) => in_protobuf(unknown)?,
        None => in_json(value)?,
    };
    let plain = |text: &str| !text.is_empty() && text.len() < 100 && text.bytes().all(|byte| byte.is_ascii_graphic());
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

/// Whether a key or its value is a Secret's: neither is printed unless asked for by its own flag.
pub fn is_secret(key: &[u8], kind: Option<&str>) -> bool {
    let in_secrets = key.split(|byte| *byte == b'/').any(|part| part == b"secrets");
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
        assert!(is_secret(b"/registry/secrets/default/x", None) && is_secret(b"/x", Some("v1 Secret")));
        assert!(!is_secret(b"/registry/configmaps/secret", Some("v1 ConfigMap")));
    }
}
