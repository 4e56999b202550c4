//! The time of the last write: neither log nor database keep times, but Kubernetes renews Lease
//! objects every few seconds and writes the time into them.

use time::OffsetDateTime;

use crate::etcd::format::proto::fields;
use crate::etcd::format::request::{Operation, Request, Txn};

/// Where Kubernetes keeps Lease objects, unless `--etcd-prefix` says otherwise.
const PREFIX: &[u8] = b"/registry/leases/";
/// What objects in protobuf begin with.
const MAGIC: &[u8] = b"k8s\0";

/// A write that carries its time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LastWrite {
    /// `renewTime`.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The Lease's key.
    pub key: String,
    /// The entry of the log it was found in; none for the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

/// The time in a Lease that is written under `key`.
pub fn in_value(key: &[u8], value: &[u8]) -> Option<LastWrite> {
    if !key.starts_with(PREFIX) {
        return None;
    }
    let time = match value.strip_prefix(MAGIC) {
        Some(unknown) => renew_time(unknown)?,
        None => renew_time_json(value)?,
    };
    Some(LastWrite {
        time,
        key: String::from_utf8_lossy(key).into_owned(),
        index: None,
    })
}

/// The last Lease that a request writes.
pub fn in_request(request: &Request<'_>) -> Option<LastWrite> {
    match request {
        Request::Put(put) => in_value(put.key, put.value),
        Request::Txn(txn) => in_txn(txn),
        _ => None,
    }
}

fn in_txn(txn: &Txn<'_>) -> Option<LastWrite> {
    txn.success
        .iter()
        .rev()
        .find_map(|operation| match operation {
            Operation::Put(put) => in_value(put.key, put.value),
            _ => None,
        })
}

/// runtime.Unknown {2: raw}, Lease {2: spec}, LeaseSpec {4: renewTime}, MicroTime {1: seconds, 2:
/// nanos}.
fn renew_time(unknown: &[u8]) -> Option<OffsetDateTime> {
    let time = field(field(field(unknown, 2)?, 2)?, 4)?;
    let (mut seconds, mut nanos) = (0, 0);
    for field in fields(time) {
        match field.ok()? {
            (1, value) => seconds = value.signed().ok()?,
            (2, value) => nanos = value.signed().ok()?,
            _ => {}
        }
    }
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()?
        .replace_nanosecond(u32::try_from(nanos).ok()?)
        .ok()
}

fn field(message: &[u8], wanted: u32) -> Option<&[u8]> {
    for field in fields(message) {
        let (number, value) = field.ok()?;
        if number == wanted {
            return value.bytes().ok();
        }
    }
    None
}

fn renew_time_json(value: &[u8]) -> Option<OffsetDateTime> {
    #[derive(serde::Deserialize)]
    struct Lease {
        spec: Spec,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        renew_time: String,
    }
    let lease: Lease = serde_json::from_slice(value).ok()?;
    OffsetDateTime::parse(
        &lease.spec.renew_time,
        &time::format_description::well_known::Rfc3339,
    )
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::format::proto::{put_bytes, put_number};

    #[test]
    fn reads_both_forms() {
        let mut time = Vec::new();
        put_number(&mut time, 1, 1_677_139_627);
        put_number(&mut time, 2, 500_000_000);
        let mut message = time;
        for field in [4, 2, 2] {
            let mut outer = Vec::new();
            put_bytes(&mut outer, field, &message);
            message = outer;
        }
        let value = [MAGIC, &message].concat();
        let write = in_value(b"/registry/leases/kube-system/kube-scheduler", &value).unwrap();
        assert_eq!(
            write.time,
            time::macros::datetime!(2023-02-23 08:07:07.5 UTC)
        );
        let json = br#"{"kind":"Lease","spec":{"renewTime":"2023-02-23T08:07:07.500000Z"}}"#;
        assert_eq!(
            in_value(b"/registry/leases/x/y", json).unwrap().time,
            write.time
        );
        assert_eq!(in_value(b"/registry/pods/x/y", &value), None);
        assert_eq!(in_value(b"/registry/leases/x/y", b"k8s\0\xff"), None);
    }
}
