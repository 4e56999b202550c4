//! What somebody with root on a machine can write: an etcd log with right checksums that names
//! another cluster, and certificates.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use crc::{CRC_32_ISCSI, Crc};

use crate::Cmd;

/// Record types of the write-ahead log (etcd's server/wal/wal.go).
const METADATA: u64 = 1;
const CHECKSUM: u64 = 4;

/// Writes another cluster's ID into the first record of a log, and all its checksums anew.
pub fn name_cluster(log: &Path, old: u64, new: u64) -> Result<()> {
    let bytes = fs::read(log)?;
    let (mut out, mut at, mut sum) = (Vec::new(), 0usize, 0u32);
    while let Some(head) = bytes.get(at..at + 8) {
        let head = u64::from_le_bytes(head.try_into()?);
        if head == 0 {
            break;
        }
        let length = usize::try_from(head & ((1 << 56) - 1))?;
        let padding = if head >> 63 == 1 {
            usize::try_from(head >> 56 & 7)?
        } else {
            0
        };
        let record = bytes.get(at + 8..at + 8 + length).context("a record")?;
        let (kind, data) = record_of(record)?;
        let data = data.map(|data| {
            if kind == METADATA {
                replaced(data, &varint(old), &varint(new))
            } else {
                data.to_vec()
            }
        });
        if let Some(data) = data.as_ref().filter(|_| kind != CHECKSUM) {
            sum = checksum(sum, data);
        }
        write_record(&mut out, kind, sum, data.as_deref());
        at += 8 + length + padding;
    }
    out.resize(bytes.len().max(out.len()), 0);
    Ok(fs::write(log, out)?)
}

/// CRC-32C over `data`, going on from `sum` as Go's `crc32.Update` does.
fn checksum(sum: u32, data: &[u8]) -> u32 {
    static TABLE: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut digest = TABLE.digest_with_initial(sum.reverse_bits() ^ u32::MAX);
    digest.update(data);
    digest.finalize()
}

/// Type and data of a record: fields 1 and 3.
fn record_of(record: &[u8]) -> Result<(u64, Option<&[u8]>)> {
    let (mut at, mut kind, mut data) = (0, 0, None);
    while at < record.len() {
        let key = read_varint(record, &mut at)?;
        match key {
            0x08 => kind = read_varint(record, &mut at)?,
            0x10 => drop(read_varint(record, &mut at)?),
            0x1a => {
                let length = usize::try_from(read_varint(record, &mut at)?)?;
                data = Some(record.get(at..at + length).context("data of a record")?);
                at += length;
            }
            other => bail!("a record has a field {other:#x}"),
        }
    }
    Ok((kind, data))
}

fn write_record(out: &mut Vec<u8>, kind: u64, sum: u32, data: Option<&[u8]>) {
    let mut record = [&[0x08][..], &varint(kind), &[0x10], &varint(u64::from(sum))].concat();
    if let Some(data) = data {
        record.extend([&[0x1a][..], &varint(data.len() as u64), data].concat());
    }
    let padding = (8 - record.len() % 8) % 8;
    let head = record.len() as u64
        | if padding > 0 {
            (0x80 | padding as u64) << 56
        } else {
            0
        };
    out.extend(head.to_le_bytes());
    out.extend(record);
    out.extend(vec![0; padding]);
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number > 127 {
        out.push(number as u8 & 127 | 128);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

fn read_varint(bytes: &[u8], at: &mut usize) -> Result<u64> {
    let (mut number, mut shift) = (0u64, 0);
    loop {
        let byte = *bytes.get(*at).context("a number")?;
        *at += 1;
        number |= u64::from(byte & 127)
            .checked_shl(shift)
            .context("a number of 64 bits")?;
        shift += 7;
        if byte < 128 {
            return Ok(number);
        }
    }
}

fn replaced(data: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    match data.windows(old.len()).position(|window| window == old) {
        Some(at) => [&data[..at], new, &data[at + old.len()..]].concat(),
        None => data.to_vec(),
    }
}

/// A CA in a folder of its own: `ca.crt` and `ca.key`.
#[derive(Debug)]
pub struct Authority(tempfile::TempDir);

/// What an etcd member's leaf is for.
pub const MEMBER: &str = "serverAuth,clientAuth";

impl Authority {
    /// A new one, called as kubeadm calls etcd's.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        key(&at("ca.key"))?;
        let request = Cmd::new("openssl").args([
            "req",
            "-x509",
            "-new",
            "-days",
            "3650",
            "-subj",
            "/CN=etcd-ca",
            "-key",
        ]);
        let extensions = [
            "basicConstraints=critical,CA:TRUE",
            "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign",
        ];
        let request = extensions
            .iter()
            .fold(request.arg(at("ca.key")), |request, extension| {
                request.args(["-addext", extension])
            });
        request.arg("-out").arg(at("ca.crt")).ok()?;
        Ok(Self(folder))
    }

    /// Its certificate.
    pub fn certificate(&self) -> PathBuf {
        self.0.path().join("ca.crt")
    }

    /// Makes a leaf `NAME.crt` and `NAME.key` in `folder`. `usages`: of extendedKeyUsage.
    pub fn leaf(&self, folder: &Path, name: &str, subject: &str, usages: &str) -> Result<()> {
        let work = tempfile::tempdir()?;
        let (own, request, extensions) = (
            folder.join(format!("{name}.key")),
            work.path().join("csr"),
            work.path().join("ext"),
        );
        key(&own)?;
        Cmd::new("openssl")
            .args(["req", "-new", "-subj", subject, "-key"])
            .arg(&own)
            .arg("-out")
            .arg(&request)
            .ok()?;
        fs::write(
            &extensions,
            format!("basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usages}\n"),
        )?;
        let sign = Cmd::new("openssl")
            .args(["x509", "-req", "-days", "365", "-in"])
            .arg(&request);
        let sign = sign
            .arg("-CA")
            .arg(self.certificate())
            .arg("-CAkey")
            .arg(self.0.path().join("ca.key"));
        let sign = sign
            .arg("-CAserial")
            .arg(work.path().join("serial"))
            .arg("-CAcreateserial");
        sign.arg("-extfile")
            .arg(extensions)
            .arg("-out")
            .arg(folder.join(format!("{name}.crt")))
            .ok()
            .map(|_| ())
    }
}

fn key(path: &Path) -> Result<()> {
    Cmd::new("openssl")
        .args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
        ])
        .arg(path)
        .ok()
        .map(|_| ())
}
