//! Halfway through a rotation of the CA: ca.crt holds two certificates.

use anyhow::{Result, ensure};

use super::case::Case;

const TWO: &str = "healthy; d=$(mktemp -d); openssl req -x509 -newkey rsa:2048 -nodes \
    -keyout \"$d/ca.key\" -out \"$d/ca.crt\" -days 3650 -subj /CN=kubernetes 2>/dev/null; ";

#[test]
fn a_bundle_that_the_controller_manager_signs_with_is_named_with_the_line_to_type() -> Result<()> {
    let case = Case::new(&format!(
        "{TWO} cat \"$d/ca.crt\" >> \"$P/ca.crt\"; rm -r \"$d\""
    ))?;
    let words = [
        "expected 1 certificate, found 2",
        "certificate 1 of /etc/kubernetes/pki/ca.crt",
        "awk '/BEGIN CERT/{n++} n==1'",
        "--cluster-signing-cert-file=/etc/kubernetes/pki/ca-signing.crt",
    ];
    let finding = case.expects("authorities.bundle", &words)?;
    ensure!(finding["severity"] == "will-break", "{finding}");

    // What it says to type gives the certificate that the key belongs to.
    case.change(
        "awk '/BEGIN CERT/{n++} n==1' \"$P/ca.crt\" > \"$P/ca-signing.crt\"; \
         test \"$(openssl x509 -in \"$P/ca-signing.crt\" -noout -pubkey)\" = \
         \"$(openssl pkey -in \"$P/ca.key\" -pubout)\"; \
         sed -i 's#\\(cluster-signing-cert-file=\\).*#\\1/etc/kubernetes/pki/ca-signing.crt#' \
         \"$K/manifests/kube-controller-manager.yaml\"",
    )?;
    ensure!(!case.modes()?.contains(&"authorities.bundle".to_owned()));
    Ok(())
}

#[test]
fn one_certificate_beside_another_file_is_no_bundle() -> Result<()> {
    let case = Case::new(&format!(
        "{TWO} cp \"$d/ca.crt\" \"$P/ca-new.crt\"; rm -r \"$d\""
    ))?;
    ensure!(!case.modes()?.contains(&"authorities.bundle".to_owned()));
    Ok(())
}
