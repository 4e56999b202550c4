//! The same repairs where systemd starts etcd, as kubespray has it, and what is said where etcd is
//! inside another program.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tests::etcd::files::{self, cut};
use tests::etcd::{self, Version, guest};
use tests::{Cmd, rescue_binary};

use super::members::judge;
use super::together::{self, Subject, sums};

/// Takes kubeadm's manifests away and puts kubespray's files in their place.
fn as_services(subject: &Subject) -> Result<()> {
    for (number, root) in subject.roots().iter().enumerate() {
        fs::remove_dir_all(root.join("etc/kubernetes"))?;
        fs::create_dir_all(root.join("etc/systemd/system"))?;
        let member = &subject.cluster.members[number];
        let environment = format!(
            "# Environment file for etcd\nETCD_DATA_DIR=/var/lib/etcd\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS={}\nETCD_INITIAL_CLUSTER_STATE=existing\n\
             ETCD_INITIAL_CLUSTER_TOKEN=k8s_etcd\nETCD_NAME={}\n",
            member.peer_url(),
            member.name
        );
        fs::write(root.join("etc/etcd.env"), environment)?;
        let unit = "[Unit]\nDescription=etcd\nAfter=network.target\n\n[Service]\nType=notify\n\
            User=root\nEnvironmentFile=/etc/etcd.env\n\
            ExecStart=/usr/local/bin/etcd\nNotifyAccess=all\nRestart=always\n\n[Install]\n\
            WantedBy=multi-user.target\n";
        fs::write(root.join("etc/systemd/system/etcd.service"), unit)?;
    }
    Ok(())
}

#[test]
fn members_that_systemd_starts_come_back_with_one_command() -> Result<()> {
    let mut subject = Subject::new(&Version::debian())?;
    as_services(&subject)?;
    let cases: [(&str, together::Damage, &str); 3] = [
        (
            "a database is cut short",
            |dirs| cut(&dirs[0].join("member/snap/db"), 8192),
            "G0",
        ),
        (
            "a member is wiped",
            |dirs| Ok(fs::remove_dir_all(dirs[2].join("member"))?),
            "G1",
        ),
        (
            "no log is left",
            |dirs| {
                dirs.iter()
                    .try_for_each(|dir| Ok(fs::remove_dir_all(dir.join("member/wal"))?))
            },
            "G3",
        ),
    ];
    for (name, damage, guarantee) in cases {
        together::case(&mut subject, damage, guarantee).context(name)?;
    }

    subject.put_back()?;
    let before = sums(&subject)?;
    let ran = subject.rescue("etcd remove-member m3", &[0, 1, 2], &[])?;
    ensure!(
        ran.code == 0 && ran.stdout.contains("etcdctl member add"),
        "{}",
        ran.transcript()
    );
    ensure!(!ran.stdout.contains("kube"), "{}", ran.transcript());
    let fenced = etcd::starts(&Version::debian(), &subject.cluster.members[2].data_dir)?;
    ensure!(
        fenced
            .as_ref()
            .is_err_and(|says| says.contains("not a directory")),
        "{fenced:?}"
    );
    let undone = subject.rescue("undo", &[0, 1, 2], &[])?;
    ensure!(
        undone.code == 0 && sums(&subject)? == before,
        "{}",
        undone.transcript()
    );
    let ran = subject.rescue("etcd remove-member m3", &[0, 1, 2], &[])?;
    ensure!(ran.code == 0, "{}", ran.transcript());
    judge(&mut subject.cluster, &[0, 1], &subject.held)
}

#[test]
fn etcd_inside_k3s_is_shown_and_left_to_k3s() -> Result<()> {
    let subject = Subject::new(&Version::debian())?;
    let home = tempfile::tempdir()?;
    let mut roots: Vec<PathBuf> = Vec::new();
    for member in &subject.cluster.members {
        let root = home.path().join(&member.name);
        guest::make(&root, &member.name, &[])?;
        fs::remove_dir_all(root.join("etc/kubernetes"))?;
        fs::create_dir_all(root.join("var/lib/rancher/k3s/server/db"))?;
        etcd::copy(
            &member.data_dir,
            &root.join("var/lib/rancher/k3s/server/db/etcd"),
        )?;
        roots.push(root);
    }
    cut(
        &roots[0].join("var/lib/rancher/k3s/server/db/etcd/member/snap/db"),
        8192,
    )?;
    let given = || {
        roots
            .iter()
            .flat_map(|root| ["--root".into(), root.clone().into_os_string()])
    };
    let ran = Cmd::new(rescue_binary())
        .args(["etcd", "status"])
        .args(given())
        .run()?;
    ensure!(
        ran.stdout.contains("m3") && ran.stdout.contains("Newest"),
        "{}",
        ran.transcript()
    );
    let all = || {
        roots
            .iter()
            .map(|root| files::sums(root))
            .collect::<Result<Vec<_>>>()
    };
    let before = all()?;
    let ran = Cmd::new(rescue_binary())
        .args(["repair", "--yes", "--only", "etcd"])
        .args(given())
        .run()?;
    ensure!(
        ran.code == 1 && ran.stdout.contains("k3s server --cluster-reset"),
        "{}",
        ran.transcript()
    );
    let ran = Cmd::new(rescue_binary())
        .args(["etcd", "rebuild", "--db-only", "--yes", "--accept-loss"])
        .args(given())
        .run()?;
    ensure!(
        ran.code == 3 && ran.stderr.contains("k3s server --cluster-reset"),
        "{}",
        ran.transcript()
    );
    ensure!(all()? == before, "something was changed");
    Ok(())
}
