//! Whether a member still listens where the others look for it. A machine that came back with
//! another address has its new one in the manifest or the service, and its old one in the cluster's
//! membership.

use std::net::IpAddr;

use super::launch::Launch;
use super::member::MemberData;
use crate::etcd::format::members::as_hex;

/// A member that the others do not find.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// Its ID.
    #[serde(serialize_with = "as_hex")]
    pub id: u64,
    /// Where the others look for it, as the membership says.
    pub known: Vec<String>,
    /// Where it is started to be reached.
    pub own: Vec<String>,
}

/// `None` where it is reached, is alone, or where that cannot be told: names instead of addresses,
/// or no `--listen-peer-urls`. That the two differ is not enough: etcd takes
/// `--initial-advertise-peer-urls` at its first start only, and `etcdctl member update` does not
/// touch it.
pub fn moved(launch: &Launch, data: &MemberData) -> Option<Moved> {
    let (members, _) = data.membership();
    let own = launch.peer_urls();
    let member = members
        .list
        .get(&data.log.identity?.member)
        .filter(|_| members.list.len() > 1)?;
    is_missed(
        &member.peer_urls,
        &own,
        launch.option("--listen-peer-urls")?,
    )
    .then(|| Moved {
        id: member.id,
        known: member.peer_urls.clone(),
        own,
    })
}

/// Whether nobody listens at any of the URLs `known`, and others are meant.
fn is_missed(known: &[String], own: &[String], listen: &str) -> bool {
    let listens: Option<Vec<(IpAddr, u16)>> =
        listen.split(',').map(|url| address(url.trim())).collect();
    let Some(listens) = listens else { return false };
    let is_dead = |url: &String| {
        let Some((host, port)) = address(url) else {
            return false;
        };
        !listens
            .iter()
            .any(|(there, at)| *at == port && (there.is_unspecified() || *there == host))
    };
    let is_elsewhere = !own.is_empty() && !own.iter().any(|url| known.contains(url));
    is_elsewhere && !known.is_empty() && known.iter().all(is_dead)
}

/// `https://10.0.0.1:2380`; nothing for a name.
fn address(url: &str) -> Option<(IpAddr, u16)> {
    let rest = url.split_once("://")?.1.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':')?;
    Some((
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .ok()?,
        port.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_names() {
        let of = |url| address(url).map(|(host, port)| (host.to_string(), port));
        assert_eq!(
            of("https://10.0.0.1:2380"),
            Some(("10.0.0.1".to_owned(), 2380))
        );
        assert_eq!(
            of("https://[fd00::1]:2380/"),
            Some(("fd00::1".to_owned(), 2380))
        );
        for name in ["https://m1:2380", "https://10.0.0.1", "10.0.0.1:2380", ""] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn only_what_is_sure_counts() {
        let (old, new) = (
            ["https://10.0.0.1:2380".to_owned()],
            ["https://10.0.9.1:2380".to_owned()],
        );
        assert!(is_missed(&old, &new, "https://10.0.9.1:2380"));
        assert!(is_missed(
            &old,
            &new,
            "https://10.0.9.1:2380, https://127.0.0.1:2380"
        ));
        // As before; reached all the same; anywhere; by a name; unknown.
        assert!(!is_missed(&old, &old, "https://10.0.9.1:2380"));
        assert!(!is_missed(
            &old,
            &new,
            "https://10.0.0.1:2380,https://10.0.9.1:2380"
        ));
        assert!(!is_missed(&old, &new, "https://0.0.0.0:2380"));
        assert!(!is_missed(
            &["https://m1:2380".to_owned()],
            &new,
            "https://10.0.9.1:2380"
        ));
        assert!(!is_missed(&old, &new, "https://m1:2380"));
        assert!(!is_missed(&old, &[], "https://10.0.9.1:2380"));
    }
}
