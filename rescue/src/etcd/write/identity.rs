//! IDs of members and clusters, worked out as etcd does
//! (server/etcdserver/api/membership/member.go, cluster.go: `genID`).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// A new member's ID, from its peer URLs and the cluster's token (`--initial-cluster-token`,
/// `etcd-cluster` by default).
pub fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    id_of(format!("{}{token}", urls.concat()).as_bytes())
}

/// A new cluster's ID, from the IDs of its first members.
pub fn cluster_id(members: impl IntoIterator<Item = u64>) -> u64 {
    let mut members: Vec<u64> = members.into_iter().collect();
    members.sort_unstable();
    let bytes: Vec<u8> = members.into_iter().flat_map(u64::to_be_bytes).collect();
    id_of(&bytes)
}

fn id_of(bytes: &[u8]) -> u64 {
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
    sum.as_ref()
        .iter()
        .take(8)
        .fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_etcd_s_own() {
        // From `etcdutl snapshot restore` 3.5.1.
        assert_eq!(
            member_id(&["http://127.0.0.1:12380".into()], "etcd-cluster"),
            0xddd6_7b31_2462_fd7b
        );
        let ids =
            [1, 2, 3].map(|port| member_id(&[format!("http://127.0.0.1:{port}")], "etcd-cluster"));
        assert_eq!(
            ids,
            [
                0x58a8_8bf9_7839_8f80,
                0x43cc_f13c_9d84_d8d2,
                0x4ec8_19aa_19b9_f4b5
            ]
        );
        assert_eq!(cluster_id(ids), 0x8db7_cbf7_c4ca_d526);
    }
}
