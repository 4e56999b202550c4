//! Renewals on clusters whose certificates openssl made: kinds of keys, odd names, odd CAs, and
//! everything that must be refused.

mod pki_support;

use anyhow::{Context as _, Result, ensure};
use pki_support::cluster::{
    CA, CA_WITHOUT_SKI, CLIENT, Cluster, P256, P384, P521, RSA, RSA_3072, SERVER, Wanted, base64,
    certificate, inline, openssl_x509, text, verify, verify_at,
};
use pki_support::{plan, told};
use rescue::base::severity::Severity;
use rescue::change::Planned;
use rescue::change::{Change, Prepared};
use rescue::finding::Finding;
use rescue::guest::{Guest, GuestPath};
use rescue::settings::Settings;
use std::fs;
use std::rc::Rc;
use time::{Duration, OffsetDateTime};

/// Leaves live for a day; this is a month later.
fn later() -> Settings {
    Settings {
        now: OffsetDateTime::now_utc() + Duration::days(30),
        ..Settings::default()
    }
}

/// Now, but after what a test has just made.
fn soon() -> Settings {
    Settings {
        now: OffsetDateTime::now_utc() + Duration::minutes(10),
        ..Settings::default()
    }
}

/// Plans on a folder; gives the findings, the changes, and the guest as it would be.
fn planned(cluster: &Cluster, settings: &Settings) -> Result<(Vec<Finding>, Prepared, Guest)> {
    let guest = cluster.guest()?;
    let (findings, prepared) = plan(&guest, settings)?;
    let mut tree = Planned::over(guest.tree(), settings.now.unix_timestamp());
    for change in &prepared.changes {
        tree.apply(change)?;
    }
    let after = guest.with_tree(Rc::new(tree));
    Ok((findings, prepared, after))
}

fn paths(prepared: &Prepared) -> Vec<String> {
    prepared
        .changes
        .iter()
        .map(|change| change.path().to_string())
        .collect()
}

fn finding<'a>(findings: &'a [Finding], words: &str) -> Result<&'a Finding> {
    let found = findings
        .iter()
        .find(|finding| finding.title.contains(words));
    found.with_context(|| format!("no finding says {words:?}:\n{}", told(findings)))
}

const SUBJECT: &[&str] = &["-subject", "-nameopt", "RFC2253,show_type"];

#[test]
fn any_kind_of_ca_and_leaf_key() -> Result<()> {
    for (ca, leaf, signature) in [
        (RSA, RSA_3072, "sha256WithRSAEncryption"),
        (P256, P256, "ecdsa-with-SHA256"),
        (P384, P384, "ecdsa-with-SHA384"),
        (P521, RSA, "ecdsa-with-SHA512"),
    ] {
        let cluster = Cluster::control_plane(ca, "/CN=kubernetes", CA, 3650, "1")?;
        cluster.leaf(
            "apiserver",
            "ca",
            leaf,
            "/CN=kube-apiserver",
            &format!("{SERVER}subjectAltName=DNS:node1\n"),
        )?;
        let old = fs::read_to_string(cluster.pki("apiserver.crt"))?;
        let old_key = fs::read_to_string(cluster.pki("apiserver.key"))?;
        let (findings, prepared, after) = planned(&cluster, &later())?;
        ensure!(
            paths(&prepared)
                == [
                    "/etc/kubernetes/pki/apiserver.key",
                    "/etc/kubernetes/pki/apiserver.crt"
                ],
            "{}",
            told(&findings)
        );
        let (new, key) = (
            text(&after, "/etc/kubernetes/pki/apiserver.crt")?,
            text(&after, "/etc/kubernetes/pki/apiserver.key")?,
        );
        verify(&after, "/etc/kubernetes/pki/ca.crt", &new, &key)?;
        // The old key's kind and size, in the encoding that kubeadm writes.
        ensure!(key.lines().next() == old_key.lines().next() && key != old_key);
        let bits = |pem: &str| -> Result<String> {
            let text = openssl_x509(pem, &["-text"])?;
            Ok(text
                .lines()
                .find(|line| line.contains("Public-Key:"))
                .unwrap_or_default()
                .trim()
                .to_owned())
        };
        ensure!(
            bits(&new)? == bits(&old)?,
            "{} {}",
            bits(&new)?,
            bits(&old)?
        );
        ensure!(
            openssl_x509(&new, &["-text"])?.contains(signature),
            "{signature}"
        );
        let left = pki_support::inspect(&after, &later())?;
        ensure!(left.is_empty(), "{}", told(&left));
    }
    Ok(())
}

#[test]
fn a_ca_without_key_identifier_with_serial_0_and_utf8_subject() -> Result<()> {
    let cluster = Cluster::control_plane(RSA, "/O=Übung/CN=kubernetes", CA_WITHOUT_SKI, 3650, "0")?;
    cluster.leaf("apiserver", "ca", RSA, "/CN=kube-apiserver", SERVER)?;
    let ca = fs::read_to_string(cluster.pki("ca.crt"))?;
    let ca_text = openssl_x509(&ca, &["-text"])?;
    ensure!(
        !ca_text.contains("Subject Key Identifier") && ca_text.contains("Serial Number: 0 "),
        "{ca_text}"
    );
    let (_, _, after) = planned(&cluster, &later())?;
    let new = text(&after, "/etc/kubernetes/pki/apiserver.crt")?;
    verify(
        &after,
        "/etc/kubernetes/pki/ca.crt",
        &new,
        &text(&after, "/etc/kubernetes/pki/apiserver.key")?,
    )?;
    let new_text = openssl_x509(&new, &["-text"])?;
    ensure!(
        !new_text.contains("Authority Key Identifier")
            && !new_text.contains("Subject Key Identifier"),
        "{new_text}"
    );
    let issuer =
        openssl_x509(&new, &["-issuer", "-nameopt", "RFC2253,show_type"])?.replace("issuer=", "");
    let subject = openssl_x509(&ca, SUBJECT)?.replace("subject=", "");
    ensure!(
        issuer == subject && issuer.contains("UTF8STRING"),
        "{issuer} {subject}"
    );
    Ok(())
}

#[test]
fn odd_subjects_and_all_kinds_of_names_keep_their_bytes() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let names = "subjectAltName=critical,DNS:node1,DNS:*.example.org,IP:10.0.0.1,IP:::1,\
        email:a@b.c,URI:spiffe://x/y\n";
    for (subject, kept) in [
        (
            "/O=system:masters/O=second/CN=kube-apiserver-kubelet-client",
            "two organizations",
        ),
        (
            "/O=one+O=two/OU=x/C=DE/CN=kube-apiserver-kubelet-client",
            "a multi-valued RDN",
        ),
        (
            "/O=a+CN=kube-apiserver-kubelet-client",
            "name and organization in one RDN",
        ),
    ] {
        let extensions = format!("{CLIENT}{names}");
        cluster.leaf("apiserver-kubelet-client", "ca", P256, subject, &extensions)?;
        let old = fs::read_to_string(cluster.pki("apiserver-kubelet-client.crt"))?;
        let (_, _, after) = planned(&cluster, &later())?;
        let new = text(&after, "/etc/kubernetes/pki/apiserver-kubelet-client.crt")?;
        ensure!(new != old);
        ensure!(
            openssl_x509(&new, SUBJECT)? == openssl_x509(&old, SUBJECT)?,
            "{kept}"
        );
        let hash = &["-subject_hash"];
        ensure!(
            openssl_x509(&new, hash)? == openssl_x509(&old, hash)?,
            "{kept}"
        );
        let names = &["-ext", "subjectAltName"];
        ensure!(
            openssl_x509(&new, names)? == openssl_x509(&old, names)?
                && openssl_x509(&new, names)?.contains("critical"),
            "{kept}"
        );
    }
    Ok(())
}

#[test]
fn usages_come_from_the_profile_and_the_difference_is_told() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.ca("etcd/ca", P256, "/CN=etcd-ca", CA, 3650, "1")?;
    cluster.manifest(
        "etcd",
        &[
            "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
            "--key-file=/etc/kubernetes/pki/etcd/server.key",
            "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
        ],
    )?;
    // Made by hand, without clientAuth and with a forbidden key usage.
    let by_hand = "keyUsage=digitalSignature,cRLSign\nextendedKeyUsage=serverAuth\n\
        subjectAltName=DNS:localhost\n";
    cluster.leaf("etcd/server", "etcd/ca", P256, "/CN=node1", by_hand)?;
    let (findings, _, after) = planned(&cluster, &later())?;
    let found = finding(&findings, "etcd-server")?;
    let details = found
        .remedies
        .first()
        .context("a remedy")?
        .details()
        .join("\n");
    ensure!(details.contains("clientAuth (was serverAuth)"), "{details}");
    let new = openssl_x509(
        &text(&after, "/etc/kubernetes/pki/etcd/server.crt")?,
        &["-text"],
    )?;
    ensure!(
        new.contains("TLS Web Server Authentication, TLS Web Client Authentication"),
        "{new}"
    );
    ensure!(
        new.contains("Digital Signature, Key Encipherment\n"),
        "{new}"
    );
    Ok(())
}

#[test]
fn dates_are_clamped_to_the_ca_and_go_beyond_2050() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 60, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let end = |pem: &str| -> Result<String> { openssl_x509(pem, &["-enddate"]) };
    let (findings, _, after) = planned(&cluster, &later())?;
    let new = text(&after, "/etc/kubernetes/pki/apiserver.crt")?;
    ensure!(
        end(&new)? == end(&text(&after, "/etc/kubernetes/pki/ca.crt")?)?,
        "clamped"
    );
    finding(&findings, "CA ca expires")?;

    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 36_500, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let (_, _, after) = planned(
        &cluster,
        &Settings {
            days: 20_000,
            ..later()
        },
    )?;
    let new = text(&after, "/etc/kubernetes/pki/apiserver.crt")?;
    let year: i32 = end(&new)?
        .split_whitespace()
        .nth(3)
        .context("a year")?
        .parse()?;
    ensure!((2080..2083).contains(&year), "{year}");
    let parsed = tests::Cmd::new("openssl")
        .args(["asn1parse"])
        .stdin(new.clone())
        .ok()?
        .stdout;
    ensure!(
        parsed.contains("UTCTIME") && parsed.contains("GENERALIZEDTIME"),
        "{parsed}"
    );
    verify(
        &after,
        "/etc/kubernetes/pki/ca.crt",
        &new,
        &text(&after, "/etc/kubernetes/pki/apiserver.key")?,
    )
}

#[test]
fn a_ca_about_to_end_is_told_and_nothing_is_renewed_twice() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let at_the_end = Settings {
        now: OffsetDateTime::now_utc() + Duration::days(3640),
        ..Settings::default()
    };
    let (before, prepared, after) = planned(&cluster, &at_the_end)?;
    ensure!(prepared.changes.len() == 2, "{}", told(&before));
    ensure!(finding(&before, "CA ca expires")?.severity == Severity::WillBreak);
    let again = plan(&after, &at_the_end)?;
    ensure!(again.1.changes.is_empty(), "{}", told(&again.0));
    let left = finding(&again.0, "apiserver expires")?;
    ensure!(
        left.severity == Severity::WillBreak && left.remedies.is_empty(),
        "{}",
        told(&again.0)
    );
    ensure!(
        left.advice
            .iter()
            .any(|line| line.contains("Renew the CA first")),
        "{}",
        told(&again.0)
    );
    Ok(())
}

#[test]
fn what_cannot_be_signed_is_refused_with_what_to_bring() -> Result<()> {
    let with_leaf = || -> Result<Cluster> {
        let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
        cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
        Ok(cluster)
    };
    let refused = |cluster: &Cluster, ca_title: &str, advice: &str| -> Result<()> {
        let (findings, prepared, _) = planned(cluster, &later())?;
        ensure!(prepared.changes.is_empty(), "{}", told(&findings));
        let leaf = finding(&findings, "apiserver expired")?;
        ensure!(
            leaf.remedies.is_empty() && leaf.severity == Severity::StopsBoot,
            "{}",
            told(&findings)
        );
        ensure!(
            leaf.advice.iter().any(|line| line.contains(advice)),
            "{advice}:\n{}",
            told(&findings)
        );
        finding(&findings, ca_title)?;
        Ok(())
    };

    let external = with_leaf()?;
    fs::remove_file(external.pki("ca.key"))?;
    refused(
        &external,
        "CA ca has no key",
        "this cluster's CA is external",
    )?;

    let mismatch = with_leaf()?;
    pki_support::cluster::key(P256, &mismatch.pki("ca.key"))?;
    refused(&mismatch, "CA ca does not match its key", "does not match")?;

    let garbage = with_leaf()?;
    fs::write(
        garbage.pki("ca.key"),
        "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
    )?;
    refused(&garbage, "CA ca has an unreadable key", "cannot be used")?;

    let unreadable = with_leaf()?;
    fs::write(unreadable.pki("ca.crt"), "hello\n")?;
    refused(&unreadable, "CA ca is unreadable", "cannot be read")?;

    let missing = with_leaf()?;
    fs::remove_file(missing.pki("ca.crt"))?;
    refused(&missing, "CA ca is missing", "is missing")?;

    let no_ca = Cluster::control_plane(P256, "/CN=kubernetes", CLIENT, 3650, "1")?;
    no_ca.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    refused(
        &no_ca,
        "CA ca is not a CA certificate",
        "not a CA certificate",
    )?;

    let expired = Cluster::control_plane(P256, "/CN=kubernetes", CA, 10, "1")?;
    expired.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    refused(&expired, "CA ca expired", "Refused: the CA")
}

#[test]
fn broken_pairs_are_made_whole() -> Result<()> {
    let server = format!("{SERVER}subjectAltName=DNS:node1\n");
    let make = || -> Result<Cluster> {
        let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
        let wanted = Wanted {
            base: &cluster.pki("apiserver"),
            key: P256,
            subject: "/CN=kube-apiserver",
            extensions: &server,
            days: 900,
        };
        certificate(&wanted, Some(&cluster.pki("ca")), None)?;
        Ok(cluster)
    };
    let now = soon();
    let good = planned(&make()?, &now)?.0;
    ensure!(
        good.is_empty(),
        "a good pair is left alone: {}",
        told(&good)
    );

    let mended = |cluster: &Cluster, title: &str| -> Result<()> {
        let (findings, prepared, after) = planned(cluster, &now)?;
        let found = finding(&findings, title)?;
        ensure!(
            found.severity == Severity::StopsBoot && prepared.changes.len() == 2,
            "{}",
            told(&findings)
        );
        verify(
            &after,
            "/etc/kubernetes/pki/ca.crt",
            &text(&after, "/etc/kubernetes/pki/apiserver.crt")?,
            &text(&after, "/etc/kubernetes/pki/apiserver.key")?,
        )?;
        ensure!(pki_support::inspect(&after, &now)?.is_empty());
        Ok(())
    };
    let cluster = make()?;
    pki_support::cluster::key(RSA, &cluster.pki("apiserver.key"))?;
    mended(&cluster, "apiserver does not match its key")?;
    let cluster = make()?;
    fs::write(cluster.pki("apiserver.key"), b"")?;
    mended(&cluster, "apiserver has no usable key")?;
    let cluster = make()?;
    fs::remove_file(cluster.pki("apiserver.key"))?;
    mended(&cluster, "apiserver has no usable key")?;
    // The CA was made anew under the same name: the leaf is worth nothing to those who trust the
    // new one.
    let cluster = make()?;
    cluster.ca("ca", P256, "/CN=kubernetes", CA, 3650, "2")?;
    mended(&cluster, "apiserver was issued by another authority")?;

    let cluster = make()?;
    fs::write(cluster.pki("apiserver.crt"), "\0\0\0\0")?;
    let (findings, prepared, _) = planned(&cluster, &now)?;
    let found = finding(&findings, "apiserver is unreadable")?;
    ensure!(
        prepared.changes.is_empty()
            && found
                .advice
                .iter()
                .any(|line| line.contains("Say it with --san ADDRESS"))
    );
    Ok(())
}

#[test]
fn a_serving_certificate_from_elsewhere_is_left_alone() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.ca("company", P256, "/O=Company/CN=Company CA", CA, 3650, "1")?;
    cluster.leaf("apiserver", "company", P256, "/CN=api.example.org", SERVER)?;
    let (findings, prepared, _) = planned(&cluster, &soon())?;
    ensure!(prepared.changes.is_empty());
    ensure!(
        finding(&findings, "issued by another")?.severity == Severity::Note,
        "{}",
        told(&findings)
    );
    let (findings, prepared, _) = planned(&cluster, &later())?;
    ensure!(prepared.changes.is_empty());
    ensure!(
        finding(&findings, "apiserver expired")?.severity == Severity::StopsBoot,
        "{}",
        told(&findings)
    );
    Ok(())
}

#[test]
fn shared_keys_keep_their_bytes() -> Result<()> {
    let cluster = Cluster::control_plane(RSA, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", RSA, "/CN=kube-apiserver", SERVER)?;
    cluster.manifest(
        "kube-apiserver",
        &[
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
            "--tls-cert-file=/etc/kubernetes/pki/apiserver.crt",
            "--tls-private-key-file=/etc/kubernetes/pki/apiserver.key",
            // As clusters before kubeadm had it: every service account's token is signed with this
            // key.
            "--service-account-key-file=/etc/kubernetes/pki/apiserver.key",
        ],
    )?;
    let key = fs::read_to_string(cluster.pki("apiserver.key"))?;
    let (findings, prepared, after) = planned(&cluster, &later())?;
    ensure!(
        paths(&prepared) == ["/etc/kubernetes/pki/apiserver.crt"],
        "{}",
        told(&findings)
    );
    let details = finding(&findings, "apiserver expired")?
        .remedies
        .first()
        .context("a remedy")?
        .details()
        .join("\n");
    ensure!(
        details.contains("the key stays: the key is also used by service accounts"),
        "{details}"
    );
    verify(
        &after,
        "/etc/kubernetes/pki/ca.crt",
        &text(&after, "/etc/kubernetes/pki/apiserver.crt")?,
        &key,
    )?;

    // One file with certificate and key.
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let both = fs::read_to_string(cluster.pki("apiserver.crt"))?
        + &fs::read_to_string(cluster.pki("apiserver.key"))?;
    cluster.write("etc/kubernetes/pki/both.pem", &both)?;
    for gone in ["apiserver.crt", "apiserver.key"] {
        fs::remove_file(cluster.pki(gone))?;
    }
    let path = "/etc/kubernetes/pki/both.pem";
    cluster.manifest(
        "kube-apiserver",
        &[
            &format!("--tls-cert-file={path}"),
            &format!("--tls-private-key-file={path}"),
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
        ],
    )?;
    let (findings, prepared, after) = planned(&cluster, &later())?;
    ensure!(paths(&prepared) == [path], "{}", told(&findings));
    let new = text(&after, path)?;
    ensure!(new != both && new.matches("-----BEGIN").count() == 2);
    verify(&after, "/etc/kubernetes/pki/ca.crt", &new, &new)
}

#[test]
fn openssl_text_crlf_and_intermediates_are_read() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let leaf = fs::read_to_string(cluster.pki("apiserver.crt"))?;
    let with_text =
        openssl_x509(&leaf, &["-text"])? + &leaf + &fs::read_to_string(cluster.pki("ca.crt"))?;
    fs::write(
        cluster.pki("apiserver.crt"),
        with_text.replace('\n', "\r\n"),
    )?;
    let key = tests::Cmd::new("openssl")
        .args(["ecparam", "-name", "prime256v1"])
        .ok()?
        .stdout
        + &fs::read_to_string(cluster.pki("apiserver.key"))?;
    fs::write(cluster.pki("apiserver.key"), key)?;
    let (findings, _, after) = planned(&cluster, &later())?;
    let evidence = &finding(&findings, "apiserver expired")?.evidence;
    ensure!(
        evidence.len() == 1,
        "nothing but the expiry is wrong: {evidence:?}"
    );
    let new = text(&after, "/etc/kubernetes/pki/apiserver.crt")?;
    ensure!(
        new.matches("BEGIN CERTIFICATE").count() == 2,
        "the CA that followed it stays"
    );
    verify(
        &after,
        "/etc/kubernetes/pki/ca.crt",
        &new,
        &text(&after, "/etc/kubernetes/pki/apiserver.key")?,
    )
}

#[test]
fn the_right_certificate_of_a_ca_bundle_signs() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    cluster.ca("old", P256, "/CN=older-ca", CA, 3650, "1")?;
    let bundle =
        fs::read_to_string(cluster.pki("old.crt"))? + &fs::read_to_string(cluster.pki("ca.crt"))?;
    fs::write(cluster.pki("ca.crt"), &bundle)?;
    let (_, prepared, after) = planned(&cluster, &later())?;
    ensure!(prepared.changes.len() == 2);
    let new = text(&after, "/etc/kubernetes/pki/apiserver.crt")?;
    ensure!(openssl_x509(&new, &["-issuer"])?.contains("kubernetes"));
    ensure!(text(&after, "/etc/kubernetes/pki/ca.crt")? == bundle);
    verify(
        &after,
        "/etc/kubernetes/pki/ca.crt",
        &new,
        &text(&after, "/etc/kubernetes/pki/apiserver.key")?,
    )
}

const NODE: &str = "/O=system:nodes/CN=system:node:node1";
const CURRENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
const KUBELET_CONF: &str = "/etc/kubernetes/kubelet.conf";

fn files() -> String {
    format!("    client-certificate: {CURRENT}\n    client-key: {CURRENT}\n")
}

/// The kubelet's certificate is mended: link, pem, kubeconfig; gives the planned kubeconfig.
fn kubelet_mended(cluster: &Cluster, settings: &Settings) -> Result<String> {
    let (findings, prepared, after) = planned(cluster, settings)?;
    let found = finding(&findings, "kubelet client certificate")?;
    ensure!(found.remedies.len() == 1, "{}", told(&findings));
    let link = after.read_link(&GuestPath::new(CURRENT))?;
    let name = link
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    ensure!(
        link.starts_with("/var/lib/kubelet/pki")
            && name.starts_with("kubelet-client-2")
            && name.len() == 38,
        "{}",
        link.display()
    );
    let pem = text(&after, CURRENT)?;
    ensure!(pem.matches("-----BEGIN").count() == 2 && pem.contains("BEGIN EC PRIVATE KEY"));
    verify_at(
        &after,
        "/etc/kubernetes/pki/ca.crt",
        &pem,
        &pem,
        Some(settings.now),
    )?;
    let subject = openssl_x509(&pem, &["-subject", "-nameopt", "RFC2253"])?;
    ensure!(
        subject.trim() == "subject=CN=system:node:node1,O=system:nodes",
        "{subject}"
    );
    let begins = openssl_x509(&pem, &["-startdate", "-dateopt", "iso_8601"])?;
    let yesterday = (settings.now - Duration::days(1)).date().to_string();
    ensure!(
        settings.now < OffsetDateTime::now_utc() + Duration::days(1) || begins.contains(&yesterday),
        "{begins} {yesterday}"
    );
    let files = prepared
        .changes
        .iter()
        .filter(|change| matches!(change, Change::Write { .. }))
        .count();
    ensure!((1..=2).contains(&files), "{:?}", paths(&prepared));
    let left = pki_support::inspect(&after, settings)?;
    ensure!(left.is_empty(), "{}", told(&left));
    let conf = text(&after, KUBELET_CONF)?;
    ensure!(
        conf.contains(&files_of(&conf)) && !conf.contains("client-certificate-data"),
        "{conf}"
    );
    Ok(conf)
}

fn files_of(conf: &str) -> String {
    let quote = if conf.contains('"') { "\"" } else { "" };
    format!("client-certificate: {quote}{CURRENT}{quote}")
}

#[test]
fn kubelets_of_every_age_get_a_new_certificate() -> Result<()> {
    let cluster = || Cluster::control_plane(RSA, "/CN=kubernetes", CA, 3650, "1");
    let user = "system:node:node1";

    // kubeadm from 1.17 on: files behind a link.
    let linked = cluster()?;
    let pair = linked.client("ca", P256, NODE)?;
    linked.write(
        "var/lib/kubelet/pki/kubelet-client-2023-01-01-00-00-00.pem",
        pair.0.clone() + &pair.1,
    )?;
    linked.link(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/pki/kubelet-client-2023-01-01-00-00-00.pem",
    )?;
    let conf = linked.kubeconfig(user, &files())?;
    linked.write("etc/kubernetes/kubelet.conf", &conf)?;
    ensure!(
        kubelet_mended(&linked, &later())? == conf,
        "kubelet.conf led there already"
    );

    // Before 1.17: inline data; a valid link beside it would not help the kubelet.
    let inlined = cluster()?;
    let pair = inlined.client("ca", RSA, NODE)?;
    let conf = inlined.kubeconfig(user, &inline(&pair))?;
    inlined.write("etc/kubernetes/kubelet.conf", &conf)?;
    let new = kubelet_mended(&inlined, &later())?;
    let body = conf.find("    client-certificate-data").context("inline")?;
    ensure!(
        new.get(..body) == conf.get(..body),
        "everything before the user's two lines stays"
    );
    ensure!(
        new.ends_with(&format!(
            "    client-certificate: {CURRENT}\n    client-key: {CURRENT}\n"
        )),
        "{new}"
    );

    // Joined: default-auth, and the certificate must say who it is.
    let joined = cluster()?;
    let pair = joined.client("ca", P256, NODE)?;
    joined.write(
        "var/lib/kubelet/pki/kubelet-client-2023-01-01-00-00-00.pem",
        pair.0.clone() + &pair.1,
    )?;
    joined.link(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/pki/kubelet-client-2023-01-01-00-00-00.pem",
    )?;
    joined.write(
        "etc/kubernetes/kubelet.conf",
        joined.kubeconfig("default-auth", &files())?,
    )?;
    kubelet_mended(&joined, &later())?;

    // Very old joins: kubelet-client.crt and .key.
    let old = cluster()?;
    let pair = old.client("ca", RSA, NODE)?;
    old.write("var/lib/kubelet/pki/kubelet-client.crt", &pair.0)?;
    old.write("var/lib/kubelet/pki/kubelet-client.key", &pair.1)?;
    let body = "    client-certificate: /var/lib/kubelet/pki/kubelet-client.crt\n    \
        client-key: /var/lib/kubelet/pki/kubelet-client.key\n";
    old.write(
        "etc/kubernetes/kubelet.conf",
        old.kubeconfig("default-auth", body)?,
    )?;
    kubelet_mended(&old, &later())?;
    Ok(())
}

#[test]
fn damaged_kubelet_stores_are_mended_where_the_node_is_known() -> Result<()> {
    let user = "system:node:node1";
    let now = soon();
    let cluster = |body: &str| -> Result<Cluster> {
        let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
        cluster.write(
            "etc/kubernetes/kubelet.conf",
            cluster.kubeconfig(user, body)?,
        )?;
        Ok(cluster)
    };
    // A dangling link, no file at all, an empty file, half a file, a file instead of a link.
    let dangling = cluster(&files())?;
    dangling.link(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/pki/gone.pem",
    )?;
    kubelet_mended(&dangling, &now)?;
    let missing = cluster(&files())?;
    kubelet_mended(&missing, &now)?;
    let empty = cluster(&files())?;
    empty.write(
        "var/lib/kubelet/pki/kubelet-client-2026-01-01-00-00-00.pem",
        "",
    )?;
    empty.link(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        "kubelet-client-2026-01-01-00-00-00.pem",
    )?;
    kubelet_mended(&empty, &now)?;
    let file = cluster(&files())?;
    let pair = file.client("ca", P256, NODE)?;
    file.write(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        pair.0.clone() + &pair.1,
    )?;
    let findings = planned(&file, &now)?.0;
    ensure!(
        finding(&findings, "not stored the way")?.severity == Severity::WillBreak,
        "{}",
        told(&findings)
    );
    kubelet_mended(&file, &now)?;
    // A key of another pair, which the kubelet dies of.
    let mixed = cluster(&files())?;
    let other = mixed.client("ca", P256, NODE)?;
    mixed.write(
        "var/lib/kubelet/pki/kubelet-client-1.pem",
        mixed.client("ca", P256, NODE)?.0 + &other.1,
    )?;
    mixed.link(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        "kubelet-client-1.pem",
    )?;
    let findings = planned(&mixed, &now)?.0;
    ensure!(
        finding(&findings, "does not match its key")?.severity == Severity::StopsBoot,
        "{}",
        told(&findings)
    );
    kubelet_mended(&mixed, &now)?;
    // Both data and files: clientcmd refuses the whole kubeconfig.
    let both = cluster(&(files() + &inline(&other)))?;
    both.write(
        "var/lib/kubelet/pki/kubelet-client-1.pem",
        other.0.clone() + &other.1,
    )?;
    both.link(
        "var/lib/kubelet/pki/kubelet-client-current.pem",
        "kubelet-client-1.pem",
    )?;
    let findings = planned(&both, &now)?.0;
    ensure!(
        finding(&findings, "kubelet client")?.severity == Severity::StopsBoot,
        "{}",
        told(&findings)
    );
    kubelet_mended(&both, &now)?;
    Ok(())
}

#[test]
fn a_kubelet_that_cannot_be_known_is_left_alone() -> Result<()> {
    let left = |cluster: &Cluster, words: &str| -> Result<()> {
        let (findings, prepared, _) = planned(cluster, &later())?;
        ensure!(prepared.changes.is_empty(), "{}", told(&findings));
        let found = finding(&findings, "kubelet client certificate")?;
        ensure!(found.severity == Severity::StopsBoot && found.remedies.is_empty());
        ensure!(
            found.advice.iter().any(|line| line.contains(words)),
            "{words}: {}",
            told(&findings)
        );
        Ok(())
    };
    let two_names = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let pair = two_names.client("ca", P256, "/O=system:nodes/CN=system:node:other")?;
    two_names.write(
        "etc/kubernetes/kubelet.conf",
        two_names.kubeconfig("system:node:node1", &inline(&pair))?,
    )?;
    left(&two_names, "\"other\"")?;

    let no_yaml = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    no_yaml.write("etc/kubernetes/kubelet.conf", "\0\0\0")?;
    left(&no_yaml, "said nowhere on this disk")?;

    let foreign = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let pair = foreign.client("ca", P256, NODE)?;
    let conf = foreign.kubeconfig("system:node:node1", &inline(&pair))?;
    foreign.write("etc/kubernetes/kubelet.conf", conf)?;
    foreign.ca("ca", P256, "/CN=kubernetes", CA, 3650, "2")?;
    left(&foreign, "trusts another CA")?;

    let worker = Cluster::new()?;
    worker.ca("ca", P256, "/CN=kubernetes", CA, 3650, "1")?;
    let pair = worker.client("ca", P256, NODE)?;
    worker.write(
        "etc/kubernetes/kubelet.conf",
        worker.kubeconfig("default-auth", &inline(&pair))?,
    )?;
    fs::remove_file(worker.pki("ca.key"))?;
    left(&worker, "a worker has none")
}

#[test]
fn only_the_administrators_entry_is_refreshed() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    let admin = cluster.client("ca", RSA, "/O=system:masters/CN=kubernetes-admin")?;
    cluster.write(
        "etc/kubernetes/admin.conf",
        cluster.kubeconfig("kubernetes-admin", &inline(&admin))?,
    )?;
    let jane = cluster.client("ca", P256, "/O=developers/CN=jane")?;
    cluster.ca("elsewhere", P256, "/CN=kubernetes", CA, 3650, "9")?;
    let other_admin = cluster.client("elsewhere", P256, "/O=system:masters/CN=kubernetes-admin")?;
    let copy = format!(
        "# mine\n{}- name: other-cluster\n  user:\n{}- name: jane\n  user:\n{}",
        cluster.kubeconfig("kubernetes-admin", &inline(&admin))?,
        inline(&other_admin),
        inline(&jane)
    );
    cluster.write("home/ann/.kube/config", &copy)?;
    cluster.write(
        "home/bob/.kube/config",
        cluster.kubeconfig("jane", &inline(&jane))?,
    )?;
    cluster.write("home/eve/.kube/config", "{{{")?;
    cluster.write("etc/passwd", "op:x:1000:1000::/srv/op:/bin/sh\nbad line\n")?;
    cluster.write(
        "srv/op/.kube/config",
        cluster.kubeconfig("kubernetes-admin", &inline(&admin))?,
    )?;
    fs::create_dir_all(cluster.root().join("root/.kube"))?;
    cluster.link("root/.kube/config", "/etc/kubernetes/admin.conf")?;
    let home = cluster.root().join("home/ann/.kube/config");
    fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    for own in [home.as_path(), &cluster.root().join("home/ann")] {
        std::os::unix::fs::chown(own, Some(1234), Some(4321))?;
    }

    let (findings, prepared, after) = planned(&cluster, &later())?;
    let changed = [
        "/etc/kubernetes/admin.conf",
        "/home/ann/.kube/config",
        "/srv/op/.kube/config",
    ];
    ensure!(
        paths(&prepared) == changed,
        "{:?}\n{}",
        paths(&prepared),
        told(&findings)
    );
    let new = text(&after, "/home/ann/.kube/config")?;
    let differing: Vec<usize> = new
        .lines()
        .zip(copy.lines())
        .enumerate()
        .filter(|(_, (new, old))| new != old)
        .map(|(line, _)| line)
        .collect();
    ensure!(
        differing.len() == 2 && new.lines().count() == copy.lines().count(),
        "{differing:?}"
    );
    ensure!(
        new.contains(&inline(&other_admin))
            && new.contains(&inline(&jane))
            && new.starts_with("# mine\n")
    );
    let admin_conf = text(&after, "/etc/kubernetes/admin.conf")?;
    let value = |text: &str| {
        text.lines()
            .find(|line| line.contains("client-certificate-data"))
            .map(str::to_owned)
    };
    ensure!(value(&new) == value(&admin_conf) && !new.contains(&base64(admin.0.as_bytes())));
    let meta = after.stat(&GuestPath::new("/home/ann/.kube/config"))?;
    ensure!(
        (meta.mode, meta.uid, meta.gid) == (0o600, 1234, 4321),
        "{meta:?}"
    );

    let ann = finding(&findings, "/home/ann")?;
    let told_alone = ann.advice.join("\n");
    ensure!(
        told_alone.contains("other-cluster (another cluster's")
            && told_alone.contains("jane (not the administrator"),
        "{told_alone}"
    );
    ensure!(finding(&findings, "/home/bob")?.severity == Severity::Note);
    ensure!(finding(&findings, "/home/eve")?.remedies.is_empty());
    ensure!(text(&after, "/home/eve/.kube/config")? == "{{{");
    Ok(())
}

#[test]
fn links_are_followed_inside_the_guest_only() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let pair = cluster.client("ca", P256, NODE)?;
    cluster.write(
        "etc/kubernetes/kubelet.conf",
        cluster.kubeconfig("default-auth", &files())?,
    )?;
    cluster.write(
        "data/kubelet/pki/kubelet-client-1.pem",
        pair.0.clone() + &pair.1,
    )?;
    cluster.link(
        "data/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/pki/kubelet-client-1.pem",
    )?;
    cluster.write("data/kubelet/config.yaml", "kind: KubeletConfiguration\n")?;
    // kubespray's pki -> ssl, absolute; the kubelet's folder on a data disk, relative and too far
    // up; both have a twin outside.
    let outside = tempfile::tempdir()?;
    for (link, target, twin) in [
        (
            "etc/kubernetes/pki",
            format!("{}/ssl", outside.path().display()),
            "ssl",
        ),
        (
            "var/lib/kubelet",
            "../../../../../../../../data/kubelet".to_owned(),
            "kubelet",
        ),
    ] {
        fs::create_dir_all(outside.path().join(twin))?;
        let real = cluster.root().join(link);
        if link.starts_with("etc") {
            let inside = cluster.root().join(target.trim_start_matches('/'));
            fs::create_dir_all(inside.parent().context("a folder")?)?;
            fs::rename(&real, inside)?;
        } else {
            fs::remove_dir_all(&real)?;
        }
        std::os::unix::fs::symlink(&target, &real)?;
    }
    let (before, after) = pki_support::repair(cluster.root(), &later())?;
    ensure!(
        before
            .iter()
            .filter(|finding| !finding.remedies.is_empty())
            .count()
            == 2,
        "{}",
        told(&before)
    );
    ensure!(after.is_empty(), "{}", told(&after));
    for twin in ["ssl", "kubelet"] {
        ensure!(
            fs::read_dir(outside.path().join(twin))?.next().is_none(),
            "something was written outside the guest"
        );
    }
    // The guest sees an absolute target below its own path, although the folder is really
    // elsewhere.
    let link = fs::read_link(
        cluster
            .root()
            .join("data/kubelet/pki/kubelet-client-current.pem"),
    )?;
    ensure!(
        link.starts_with("/var/lib/kubelet/pki"),
        "{}",
        link.display()
    );
    Ok(())
}

#[test]
fn no_key_is_ever_shown() -> Result<()> {
    let cluster = Cluster::control_plane(RSA, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let admin = cluster.client("ca", RSA, "/O=system:masters/CN=kubernetes-admin")?;
    cluster.write(
        "etc/kubernetes/admin.conf",
        cluster.kubeconfig("kubernetes-admin", &inline(&admin))?,
    )?;
    let (findings, prepared, after) = planned(&cluster, &later())?;
    let inventory = rescue::pki::inventory::Inventory::read(
        &after,
        &rescue::node::Node::read(&after),
        later().now,
    );
    let shown = format!(
        "{findings:?}{findings:#?}{prepared:?}{inventory:?}{}",
        told(&findings)
    );
    for path in [
        "/etc/kubernetes/pki/ca.key",
        "/etc/kubernetes/pki/apiserver.key",
        "/etc/kubernetes/admin.conf",
    ] {
        let guest = cluster.guest()?;
        for secret in [text(&guest, path)?, text(&after, path)?] {
            // Any run of 24 characters of a key or of a kubeconfig's data would be too much.
            let lines = secret
                .lines()
                .filter(|line| !line.contains("-----") && line.len() >= 24);
            let lines =
                lines.filter(|line| !line.starts_with(' ') || line.contains("client-key-data"));
            for line in lines {
                let piece = line.rsplit(' ').next().unwrap_or_default();
                let piece = piece.get(..24).unwrap_or(piece);
                ensure!(
                    piece.len() < 24 || !shown.contains(piece),
                    "{path} is shown"
                );
            }
        }
    }
    ensure!(shown.contains("PrivateKey(RSA-2048)"));
    Ok(())
}

#[test]
fn a_worker_is_judged_by_its_own_files() -> Result<()> {
    let worker = Cluster::new()?;
    worker.ca("ca", P256, "/CN=kubernetes", CA, 3650, "1")?;
    let pair = worker.client("ca", P256, NODE)?;
    worker.write(
        "etc/kubernetes/kubelet.conf",
        worker.kubeconfig("default-auth", &inline(&pair))?,
    )?;
    fs::remove_file(worker.pki("ca.key"))?;
    let left = planned(&worker, &soon())?.0;
    ensure!(left.is_empty(), "a good worker: {}", told(&left));
    // Its kubelet exits without the file that its config names.
    worker.write(
        "var/lib/kubelet/config.yaml",
        "kind: KubeletConfiguration\nauthentication:\n  x509:\n    \
         clientCAFile: /etc/kubernetes/ssl/ca.crt\n",
    )?;
    fs::remove_file(worker.pki("ca.crt"))?;
    let findings = planned(&worker, &soon())?.0;
    let found = finding(&findings, "CA ca is missing")?;
    ensure!(
        found.severity == Severity::StopsBoot
            && found.evidence[0].place() == "/etc/kubernetes/ssl/ca.crt",
        "{}",
        told(&findings)
    );
    Ok(())
}

#[test]
fn a_clock_before_the_certificates_is_not_believed() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf("apiserver", "ca", P256, "/CN=kube-apiserver", SERVER)?;
    let past = Settings {
        now: OffsetDateTime::now_utc() - Duration::days(30),
        ..Settings::default()
    };
    let (findings, prepared, _) = planned(&cluster, &past)?;
    ensure!(prepared.changes.is_empty());
    ensure!(
        finding(&findings, "CA ca is not yet valid")?
            .advice
            .iter()
            .any(|line| line.contains("--now")),
        "{}",
        told(&findings)
    );
    Ok(())
}

#[test]
fn no_byte_of_a_hostile_certificate_makes_it_panic() -> Result<()> {
    let cluster = Cluster::control_plane(P256, "/O=a+O=b/CN=kubernetes", CA, 3650, "1")?;
    cluster.leaf(
        "apiserver",
        "ca",
        P256,
        "/CN=kube-apiserver",
        &format!("{SERVER}subjectAltName=DNS:a,IP:1.2.3.4,URI:x:y\n"),
    )?;
    let pem = fs::read(cluster.pki("apiserver.crt"))?;
    let good = rescue::pki::x509::pem::certificates(&pem)
        .pop()
        .context("a certificate")?;
    let ca = rescue::pki::x509::certificate::Certificate::all_from_pem(&fs::read(
        cluster.pki("ca.crt"),
    )?)?;
    // SEQUENCE { SEQUENCE { what is signed } … }, both with two bytes of length.
    let signed = 4..8 + usize::from(u16::from_be_bytes([good[6], good[7]]));
    let mut read = 0;
    for at in 0..good.len() {
        for value in [0x00, 0x7f, 0x80, 0x84, 0xff, good[at] ^ 1] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if let Ok(certificate) = rescue::pki::x509::certificate::Certificate::from_der(&bytes) {
                read += 1;
                let valid = certificate.signed_by(&ca[0])
                    == rescue::pki::x509::certificate::SignatureCheck::Valid;
                ensure!(
                    !valid || bytes == good || !signed.contains(&at),
                    "byte {at} became {value:#x} and the signature still holds"
                );
            }
        }
        let _ = rescue::pki::x509::certificate::Certificate::from_der(&good[..at]);
    }
    ensure!(read > 100);
    Ok(())
}
