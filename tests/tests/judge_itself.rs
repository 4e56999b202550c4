//! The second opinion must be able to say yes as well as no: the node's leaves renewed with openssl
//! satisfy it.

use anyhow::Result;
use tests::{Cmd, fixtures, judge, programs};

#[test]
fn leaves_renewed_with_openssl_are_accepted_and_etcd_serves_the_marker() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_control_plane(folder.path())?;
    let dead = judge::root(folder.path())?;
    assert!(
        dead.leaves
            .iter()
            .all(|leaf| leaf.verdict.says == "certificate has expired"),
        "{dead:#?}"
    );
    assert_eq!(dead.etcd.says, "TLS fails: certificate has expired");

    Cmd::new(programs::workspace().join("scripts/openssl-renew"))
        .arg(folder.path())
        .ok()?;
    let renewed = judge::root(folder.path())?;
    let bad: Vec<&str> = renewed
        .leaves
        .iter()
        .filter(|l| !l.verdict.good)
        .map(|l| l.name.as_str())
        .collect();
    assert_eq!(
        bad,
        ["/root/.kube/config", "kubelet client"],
        "{renewed:#?}"
    );
    assert!(renewed.etcd.good, "{renewed:#?}");
    assert!(
        !renewed.kubelet.good,
        "openssl-renew does not touch the kubelet's"
    );
    Ok(())
}

#[test]
fn a_key_that_does_not_belong_to_its_certificate_is_noticed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fixtures::unpack_control_plane(folder.path())?;
    Cmd::new(programs::workspace().join("scripts/openssl-renew"))
        .arg(folder.path())
        .ok()?;
    let pki = folder.path().join("etc/kubernetes/pki");
    std::fs::copy(pki.join("sa.key"), pki.join("apiserver.key"))?;
    let leaves = judge::root(folder.path())?.leaves;
    let apiserver = leaves
        .iter()
        .find(|leaf| leaf.name == "apiserver")
        .map(|leaf| leaf.verdict.says.as_str());
    assert_eq!(apiserver, Some("the key does not match"));
    Ok(())
}
