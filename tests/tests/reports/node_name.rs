//! The node's name is cross-checked: a host name that changed is named, and nothing is issued for a
//! name in doubt.

use std::fs;

use anyhow::{Result, ensure};
use tests::Cmd;

use super::case::Case;

#[test]
fn a_longer_host_name_is_named_and_put_back_after_asking() -> Result<()> {
    let case = Case::new("healthy; echo k8s-master01.example.internal > \"$T/etc/hostname\"")?;
    case.expects(
        "node-name.differs",
        &[
            "registers as k8s-master01.example.internal",
            "its certificate is for k8s-master01",
            "/etc/hostname",
        ],
    )?;
    case.mends_when_allowed("node-name.differs")?;
    let hostname = fs::read_to_string(case.path("/etc/hostname"))?;
    ensure!(hostname == "k8s-master01\n", "{hostname}");
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    Ok(())
}

#[test]
fn a_placeholder_of_cloud_init_is_named_and_certificates_stay_for_the_node() -> Result<()> {
    let case = Case::new(
        "echo placeholder-host > \"$T/etc/hostname\"; mkdir -p \"$T/etc/cloud\"; \
         echo 'preserve_hostname: false' > \"$T/etc/cloud/cloud.cfg\"",
    )?;
    case.expects("node-name.differs", &["placeholder-host", "k8s-master01"])?;
    let ran = case.rescue(&["repair", "--yes"])?;
    ensure!(ran.code == 1, "{}", ran.transcript());
    let subject = Cmd::new("openssl")
        .args(["x509", "-noout", "-subject", "-in"])
        .arg(
            case.path("/var/lib/kubelet/pki/kubelet-client-current.pem")
                .read_link()
                .map(|link| case.path(&link.to_string_lossy()))?,
        )
        .ok()?;
    ensure!(
        subject.stdout.contains("system:node:k8s-master01"),
        "{}",
        subject.stdout
    );
    ensure!(
        case.modes()? == ["node-name.differs"],
        "{:?}",
        case.modes()?
    );
    let ran = case.rescue(&["repair", "--yes", "--allow", "node-name"])?;
    ensure!(case.modes()?.is_empty(), "{}", ran.transcript());
    let told = fs::read_to_string(case.path("/etc/cloud/cloud.cfg.d/99-rescue-hostname.cfg"))?;
    ensure!(told.contains("preserve_hostname: true"), "{told}");
    Ok(())
}

#[test]
fn a_certificate_of_another_node_is_doubtful_and_the_user_decides() -> Result<()> {
    // A cloned disk: its own name is everywhere but in the kubelet's certificate.
    let script = "echo master9 > \"$T/etc/hostname\"; \
         sed -i 's/--name=k8s-master01/--name=master9/' \"$K/manifests/etcd.yaml\"; \
         rm -rf \"$T/var/log/pods\"; sed -i 's/system:node:k8s-master01/default-auth/' \
         \"$K/kubelet.conf\"";
    let case = Case::new(script)?;
    case.expects(
        "node-name.doubtful",
        &["--node-name k8s-master01 or --node-name master9"],
    )?;
    let before = fs::read_link(case.path("/var/lib/kubelet/pki/kubelet-client-current.pem"))?;
    let ran = case.rescue(&["repair", "--yes"])?;
    let after = fs::read_link(case.path("/var/lib/kubelet/pki/kubelet-client-current.pem"))?;
    ensure!(ran.code == 1 && before == after, "{}", ran.transcript());

    let ran = case.rescue(&["repair", "--yes", "--node-name", "master9"])?;
    let link = fs::read_link(case.path("/var/lib/kubelet/pki/kubelet-client-current.pem"))?;
    let subject = Cmd::new("openssl")
        .args(["x509", "-noout", "-subject", "-in"])
        .arg(case.path(&link.to_string_lossy()))
        .ok()?;
    ensure!(
        subject.stdout.contains("system:node:master9"),
        "{} {}",
        subject.stdout,
        ran.transcript()
    );
    Ok(())
}

#[test]
fn a_name_that_no_node_can_have_is_refused() -> Result<()> {
    let ran = Case::new("healthy")?.rescue(&["inspect", "--node-name", "Node_1"])?;
    ensure!(
        ran.code == 2 && ran.stderr.contains("no node name"),
        "{}",
        ran.transcript()
    );
    Ok(())
}
