//! CAs were replaced by hand, and the kubeconfigs still trust the old one.

use std::fs;

use anyhow::{Result, ensure};
use tests::Cmd;

use super::case::Case;

/// A new CA under the old name, valid from 2023 on; what was signed by the old one is not touched.
const NEW_CA: &str = r#"d=$(mktemp -d)
openssl req -new -newkey rsa:2048 -nodes -keyout "$d/ca.key" -subj /CN=kubernetes -out "$d/ca.csr" 2>/dev/null
printf 'default_ca=c\n[c]\ndatabase=%s/i\nserial=%s/s\nnew_certs_dir=%s\ndefault_md=sha256\npolicy=p\nunique_subject=no\ncopy_extensions=copyall\n[p]\nO=optional\nCN=supplied\n[e]\n[a]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature,keyEncipherment,keyCertSign\nsubjectKeyIdentifier=hash\n' "$d" "$d" "$d" > "$d/cnf"
: > "$d/i"; echo 7701 > "$d/s"
openssl ca -batch -selfsign -config "$d/cnf" -extensions a -keyfile "$d/ca.key" -in "$d/ca.csr" -out "$d/ca.crt" -notext -startdate 20230224080000Z -enddate 20330220080000Z 2>/dev/null
cat "$d/ca.crt" > "$P/ca.crt"; cat "$d/ca.key" > "$P/ca.key"
"#;

/// Every leaf of the cluster's CA, signed by the new one and over since 2024.
const OVER: &str = r#"over() { openssl x509 -in "$1" -signkey "$2" -x509toreq -copy_extensions copyall -out "$d/r" 2>/dev/null
  openssl ca -batch -config "$d/cnf" -extensions e -cert "$d/ca.crt" -keyfile "$d/ca.key" -in "$d/r" -out "$d/o" -notext -startdate 20230224080000Z -enddate 20240224080000Z 2>/dev/null; cat "$d/o" > "$1"; }
for n in apiserver apiserver-kubelet-client; do over "$P/$n.crt" "$P/$n.key"; done
for n in admin controller-manager scheduler; do conf_get "$K/$n.conf" client-certificate-data > "$d/c"; conf_get "$K/$n.conf" client-key-data > "$d/k"
  over "$d/c" "$d/k"; conf_set "$K/$n.conf" client-certificate-data "$d/c"; done; cp "$K/admin.conf" "$T/root/.kube/config"
old=$(echo "$KP"/kubelet-client-2023*.pem); sed -n '/BEGIN CERT/,/END CERT/p' "$old" > "$d/c"; sed -n '/PRIVATE KEY/,/PRIVATE KEY/p' "$old" > "$d/k"; over "$d/c" "$d/k"; store_pem 2023-02-24-09-00-00 "$d/c" "$d/k"
"#;

const CONFIGS: [&str; 5] = [
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/controller-manager.conf",
    "/etc/kubernetes/scheduler.conf",
    "/etc/kubernetes/kubelet.conf",
    "/root/.kube/config",
];

/// Whether each kubeconfig trusts the CA that has signed the API server's certificate.
fn all_trust_the_server(case: &Case) -> Result<()> {
    for config in CONFIGS {
        let text = fs::read_to_string(case.path(config))?;
        let data = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("certificate-authority-data: "));
        let folder = tempfile::tempdir()?;
        let trusted = folder.path().join("ca.crt");
        let script = format!("echo {} | base64 -d > \"$1\"", data.unwrap_or_default());
        Cmd::new("bash")
            .args(["-c", &script, "x"])
            .arg(&trusted)
            .ok()?;
        let verified = Cmd::new("openssl")
            .args(["verify", "-no_check_time", "-CAfile"])
            .arg(&trusted)
            .arg(case.path("/etc/kubernetes/pki/apiserver.crt"))
            .run()?;
        ensure!(verified.code == 0, "{config}: {}", verified.transcript());
    }
    Ok(())
}

#[test]
fn kubeconfigs_that_trust_the_old_ca_get_the_new_one() -> Result<()> {
    let case = Case::new(&format!("{NEW_CA} healthy"))?;
    case.expects("kubeconfig-ca.other", &CONFIGS)?;
    ensure!(
        case.modes()? == ["kubeconfig-ca.other"],
        "{:?}",
        case.modes()?
    );
    case.mends("kubeconfig-ca.other")?;
    ensure!(case.modes()?.is_empty(), "{:?}", case.modes()?);
    all_trust_the_server(&case)
}

#[test]
fn where_everything_is_over_too_all_is_mended_together() -> Result<()> {
    let case = Case::new(&format!("{NEW_CA}{OVER}"))?;
    case.expects("kubeconfig-ca.other", &CONFIGS)?;
    let ran = case.rescue(&["repair", "--yes", "--skip", "etcd", "--skip", "disk-full"])?;
    ensure!(!ran.stdout.contains("oin the node"), "{}", ran.transcript());
    // etcd's own certificates are of another CA and over as well; all is mended.
    ensure!(
        case.modes()?.is_empty(),
        "{:?} {}",
        case.modes()?,
        ran.transcript()
    );
    all_trust_the_server(&case)
}

#[test]
fn a_ca_that_is_itself_the_stranger_changes_no_kubeconfig() -> Result<()> {
    // Only ca.crt and ca.key are another cluster's: server and clients are of the old CA.
    let case = Case::new(&format!("healthy; {NEW_CA}"))?;
    let before = fs::read(case.path("/etc/kubernetes/scheduler.conf"))?;
    case.expects("kubeconfig-ca.other", &["nothing proves"])?;
    case.rescue(&["repair", "--yes", "--only", "kubeconfig-ca"])?;
    ensure!(fs::read(case.path("/etc/kubernetes/scheduler.conf"))? == before);
    Ok(())
}
