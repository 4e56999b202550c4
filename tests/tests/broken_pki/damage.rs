//! What happens to files.

use super::pki_support::cluster::{P256, base64, decoded, key};
use super::tree::{File, Kind, Tree};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;

/// One way for a file to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Not there.
    Absent,
    /// Zero bytes: a file created just before the power went.
    Empty,
    /// The first half.
    Truncated,
    /// Zeros and other bytes instead of text.
    Garbage,
    /// Another key: in a key file, or behind a certificate's name.
    WrongKey,
    /// Signed by another CA of the same name.
    WrongCa,
    /// Over.
    Expired,
    /// Not begun.
    NotYetValid,
    /// Lines that end as on Windows.
    Crlf,
    /// What `openssl x509 -text` prints, before the block.
    TextBefore,
    /// A second certificate behind the first.
    TwoCertificates,
}

impl Damage {
    /// All that can happen to such a file.
    pub fn of(kind: Kind) -> Vec<Self> {
        let any = [
            Self::Absent,
            Self::Empty,
            Self::Truncated,
            Self::Garbage,
            Self::WrongKey,
            Self::Crlf,
            Self::TextBefore,
        ];
        let of_leaf = [
            Self::WrongCa,
            Self::Expired,
            Self::NotYetValid,
            Self::TwoCertificates,
        ];
        let of_ca = [Self::Expired, Self::NotYetValid, Self::TwoCertificates];
        match kind {
            Kind::LeafCertificate => [&any[..], &of_leaf[..]].concat(),
            Kind::CaCertificate => [&any[..], &of_ca[..]].concat(),
            Kind::LeafKey | Kind::CaKey => any.to_vec(),
            Kind::Config => [&any[..], &of_leaf[..]].concat(),
        }
    }
}

/// Does it to a file of a copy of the tree.
pub fn damage(tree: &Tree, file: &File, how: Damage) -> Result<()> {
    let path = tree.root().join(&file.path);
    let old = fs::read_to_string(&path)?;
    let after = |text: String| fs::write(&path, text).context("damaging a file");
    match how {
        Damage::Absent => Ok(fs::remove_file(&path)?),
        Damage::Empty => after(String::new()),
        Damage::Truncated => after(old[..old.len() / 2].to_owned()),
        Damage::Garbage => Ok(fs::write(
            &path,
            [0_u8, 0xff, 0x1b, b'[', b'2', b'J'].repeat(200),
        )?),
        Damage::Crlf => after(old.replace('\n', "\r\n")),
        Damage::TextBefore if file.kind == Kind::Config => after(format!("# by hand\n---\n{old}")),
        Damage::TextBefore => after(format!(
            "Certificate:\n    Data:\n        Version: 3 (0x2)\nBag Attributes\n{old}"
        )),
        _ if file.kind == Kind::Config => damage_client(tree, file, how, &old),
        Damage::WrongKey if matches!(file.kind, Kind::LeafKey | Kind::CaKey) => key(P256, &path),
        Damage::WrongKey => tree.certify(file, |wanted| wanted, &path, false),
        Damage::WrongCa => tree.certify(file, |wanted| wanted, &path, true),
        Damage::Expired => tree.certify(file, |_| (-40, -10), &path, false),
        Damage::NotYetValid => tree.certify(file, |_| (10, 40), &path, false),
        Damage::TwoCertificates => {
            let other = tree.root().join("tmp/other");
            fs::create_dir_all(other.parent().context("a folder")?)?;
            tree.certify(file, |wanted| wanted, &other, false)?;
            let second = fs::read_to_string(&other)?;
            fs::remove_dir_all(tree.root().join("tmp"))?;
            after(old + &second)
        }
    }
}

/// The key beside a certificate.
pub fn beside(certificate: &Path) -> std::path::PathBuf {
    certificate.with_extension("key")
}

/// Exchanges the certificate (or, for [`Damage::WrongKey`], the key) in a kubeconfig.
fn damage_client(tree: &Tree, file: &File, how: Damage, old: &str) -> Result<()> {
    let work = tempfile::tempdir()?;
    let made = work.path().join("made");
    let field = if how == Damage::WrongKey {
        "client-key-data: "
    } else {
        "client-certificate-data: "
    };
    let from = old.find(field).context("the field")? + field.len();
    let data = old
        .get(from..)
        .and_then(|rest| rest.lines().next())
        .context("its data")?;
    match how {
        Damage::WrongKey => key(P256, &made)?,
        Damage::WrongCa => tree.certify(file, |wanted| wanted, &made, true)?,
        Damage::Expired => tree.certify(file, |_| (-40, -10), &made, false)?,
        Damage::NotYetValid => tree.certify(file, |_| (10, 40), &made, false)?,
        // As some tools write it: the CA behind the leaf.
        _ => {
            let ca = fs::read(tree.root().join("etc/kubernetes/pki/ca.crt"))?;
            fs::write(&made, [decoded(data)?, ca].concat())?;
        }
    }
    Ok(fs::write(
        tree.root().join(&file.path),
        old.replace(data, &base64(&fs::read(&made)?)),
    )?)
}
