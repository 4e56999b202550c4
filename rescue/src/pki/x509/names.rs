//! Subject alternative names: reading, comparing and encoding them, each with where it was found.

use anyhow::{Context as _, Result};
use der::Tag;
use std::fmt;
use std::net::IpAddr;

use super::certificate::AlternativeNames;
use super::der_parts::{elements, sequence, wrap};

/// A DNS name or an IP address, the two kinds that Kubernetes' servers are called by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// In lower case; may begin with `*.`.
    Dns(String),
    /// Never an IPv4 address in IPv6 clothes.
    Ip(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Ip(address) => write!(f, "IP:{address}"),
        }
    }
}

/// A name, and what on the disk says that it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameSource {
    /// The name.
    pub name: Name,
    /// Guest path with the flag or key, or another short phrase.
    pub source: String,
}

impl NameSource {
    /// A name with its source.
    pub fn new(name: Name, source: impl fmt::Display) -> Self {
        Self {
            name,
            source: source.to_string(),
        }
    }
}

impl fmt::Display for NameSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.source)
    }
}

impl Name {
    /// An address, or a host name that Go's x509 would match: RFC 1123 with underscores, a first
    /// label `*` allowed. A name that ends in a number is a mistyped address.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Ip(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let plain = name.strip_prefix("*.").unwrap_or(&name);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last_is_number = plain
            .rsplit('.')
            .next()?
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        (name.len() <= 253 && plain.split('.').all(label) && !last_is_number)
            .then_some(Self::Dns(name))
    }

    /// The host of `https://host:port/path`; brackets around an IPv6 address.
    pub fn of_url(url: &str) -> Option<Self> {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next()?;
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        Self::of_endpoint(host)
    }

    /// The host of `host:port`, `[address]:port` or a bare one.
    pub fn of_endpoint(endpoint: &str) -> Option<Self> {
        if let Some(rest) = endpoint.strip_prefix('[') {
            return Self::parse(rest.split_once(']')?.0);
        }
        match endpoint.split_once(':') {
            Some((host, port)) if !port.contains(':') => Self::parse(host),
            _ => Self::parse(endpoint),
        }
    }

    /// What a user asks for with `--san`: `NAME` for the API server, `etcd-server=NAME` or
    /// `etcd-peer=NAME`. Gives the leaf too.
    pub fn asked(text: &str) -> Option<(&'static str, Self)> {
        let (leaf, name) = text.split_once('=').unwrap_or(("apiserver", text));
        let leaf = ["apiserver", "etcd-server", "etcd-peer"]
            .into_iter()
            .find(|known| *known == leaf)?;
        Some((leaf, Self::parse(name)?))
    }

    /// An address that means "any" (`0.0.0.0`), which nobody connects to.
    pub fn is_unspecified(&self) -> bool {
        matches!(self, Self::Ip(address) if address.is_unspecified())
    }

    /// An address or name of the machine itself.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(address) => address.is_loopback(),
            Self::Dns(name) => name == "localhost",
        }
    }

    /// Whether a client that calls the server so accepts a certificate with these names, by the
    /// rules of Go's `x509.Certificate.VerifyHostname`: whole names without regard to case, a `*`
    /// for exactly the first label.
    pub fn is_in(&self, names: &AlternativeNames) -> bool {
        let wanted = self.to_string();
        names.names.iter().any(|have| {
            have.eq_ignore_ascii_case(&wanted)
                || matches!(
                    (have.strip_prefix("DNS:*."), self),
                    (Some(rest), Self::Dns(name))
                        if name.split_once('.').is_some_and(|(_, own)| own.eq_ignore_ascii_case(rest))
                )
        })
    }

    /// The GeneralName, DER: `[2]` IA5String or `[7]` of 4 or 16 octets.
    fn general_name(&self) -> der::Result<Vec<u8>> {
        let tag = |number| Tag::ContextSpecific {
            constructed: false,
            number: der::TagNumber(number),
        };
        match self {
            Self::Dns(name) => wrap(tag(2), &[name.as_bytes()]),
            Self::Ip(IpAddr::V4(address)) => wrap(tag(7), &[&address.octets()]),
            Self::Ip(IpAddr::V6(address)) => wrap(tag(7), &[&address.octets()]),
        }
    }
}

/// Without repetitions, in the order of kubeadm and Go: DNS names sorted, then addresses as they
/// came.
pub fn in_order(names: &[NameSource]) -> Vec<NameSource> {
    let mut dns: Vec<NameSource> = Vec::new();
    let mut addresses: Vec<NameSource> = Vec::new();
    for name in names {
        let list = if matches!(name.name, Name::Dns(_)) {
            &mut dns
        } else {
            &mut addresses
        };
        if !list.iter().any(|have| have.name == name.name) {
            list.push(name.clone());
        }
    }
    dns.sort_by(|a, b| a.name.cmp(&b.name));
    dns.extend(addresses);
    dns
}

/// The names of an old certificate, byte for byte, and further ones behind them. `None` where there
/// is neither.
pub fn union(
    old: Option<&AlternativeNames>,
    more: &[NameSource],
) -> Result<Option<AlternativeNames>> {
    let more = in_order(more);
    let new: Vec<&NameSource> = more
        .iter()
        .filter(|name| old.is_none_or(|old| !old.names.contains(&name.name.to_string())))
        .collect();
    if new.is_empty() {
        return Ok(old.cloned());
    }
    let mut encoded = Vec::new();
    for (tag, content) in old
        .map(|old| elements(&old.raw))
        .transpose()
        .context("reading the old names")?
        .into_iter()
        .flatten()
    {
        encoded.push(wrap(tag, &[&content]).context("encoding the old names")?);
    }
    for name in &new {
        encoded.push(
            name.name
                .general_name()
                .with_context(|| format!("encoding {}", name.name))?,
        );
    }
    let parts: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
    let mut names = old.map(|old| old.names.clone()).unwrap_or_default();
    names.extend(new.iter().map(|name| name.name.to_string()));
    let raw = sequence(&parts).context("encoding names")?;
    Ok(Some(AlternativeNames {
        raw,
        critical: old.is_some_and(|old| old.critical),
        names,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NameSource {
        NameSource::new(Name::parse(text).unwrap(), "test")
    }

    #[test]
    fn knows_names_and_addresses() {
        let shown = |text: &str| Name::parse(text).map(|name| name.to_string());
        assert_eq!(shown("10.0.0.1").as_deref(), Some("IP:10.0.0.1"));
        assert_eq!(shown("::ffff:10.0.0.1").as_deref(), Some("IP:10.0.0.1"));
        assert_eq!(
            shown("K8s-VIP.Example.org.").as_deref(),
            Some("DNS:k8s-vip.example.org")
        );
        assert_eq!(shown("*.example.org").as_deref(), Some("DNS:*.example.org"));
        for bad in [
            "",
            "10.0.0.300",
            "a..b",
            "-a",
            "a b",
            "a*",
            "*",
            "é.org",
            "a=b",
            "a/b",
        ] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn finds_the_host_of_urls_and_endpoints() {
        let host = |text: &str| Name::of_url(text).map(|name| name.to_string());
        assert_eq!(
            host("https://10.0.2.15:2379").as_deref(),
            Some("IP:10.0.2.15")
        );
        assert_eq!(
            host("https://[fd00::1]:6443/x").as_deref(),
            Some("IP:fd00::1")
        );
        assert_eq!(
            host("https://vip.example.org").as_deref(),
            Some("DNS:vip.example.org")
        );
        assert_eq!(host("https://u:p@vip:6443?x").as_deref(), Some("DNS:vip"));
        assert_eq!(host("fd00::1").as_deref(), Some("IP:fd00::1"));
        assert_eq!(host("https://"), None);
    }

    #[test]
    fn takes_what_users_ask_for() {
        let asked = |text: &str| Name::asked(text).map(|(leaf, name)| format!("{leaf} {name}"));
        assert_eq!(
            asked("vip.example.org").as_deref(),
            Some("apiserver DNS:vip.example.org")
        );
        assert_eq!(
            asked("etcd-peer=10.0.0.1").as_deref(),
            Some("etcd-peer IP:10.0.0.1")
        );
        for bad in [
            "",
            "kubelet=a",
            "apiserver-etcd-client=a",
            "a b",
            "10.0.0.256",
        ] {
            assert_eq!(asked(bad), None, "{bad}");
        }
    }

    #[test]
    fn matches_as_go_does() {
        let names = union(
            None,
            &[name("*.example.org"), name("node1"), name("10.0.0.1")],
        )
        .unwrap()
        .unwrap();
        for (text, expected) in [
            ("a.example.org", true),
            ("a.b.example.org", false),
            ("example.org", false),
            ("NODE1", true),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
        ] {
            assert_eq!(Name::parse(text).unwrap().is_in(&names), expected, "{text}");
        }
    }

    #[test]
    fn writes_what_go_writes() {
        let names = union(
            None,
            &[
                name("10.0.0.1"),
                name("b"),
                name("::1"),
                name("a"),
                name("b"),
            ],
        )
        .unwrap()
        .unwrap();
        let mut expected = vec![
            0x30, 30, 0x82, 1, b'a', 0x82, 1, b'b', 0x87, 4, 10, 0, 0, 1, 0x87, 16,
        ];
        expected.extend([0; 15]);
        expected.push(1);
        expected[1] = u8::try_from(expected.len() - 2).unwrap();
        assert_eq!(names.raw, expected);
        assert_eq!(names.names, ["DNS:a", "DNS:b", "IP:10.0.0.1", "IP:::1"]);
    }

    #[test]
    fn adds_behind_what_was_there() {
        let old = AlternativeNames {
            // DNS:z, then URI:x:y, which this program has no word for.
            raw: vec![0x30, 8, 0x82, 1, b'z', 0x86, 3, b'x', b':', b'y'],
            critical: true,
            names: vec!["DNS:z".to_owned(), "URI:x:y".to_owned()],
        };
        let all = union(Some(&old), &[name("a"), name("z")]).unwrap().unwrap();
        assert_eq!(
            all.raw,
            [
                0x30, 11, 0x82, 1, b'z', 0x86, 3, b'x', b':', b'y', 0x82, 1, b'a'
            ]
        );
        assert!(all.critical);
        assert_eq!(union(Some(&old), &[name("z")]).unwrap(), Some(old));
        assert_eq!(union(None, &[]).unwrap(), None);
    }
}
