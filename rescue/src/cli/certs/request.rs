//! `rescue certs request WORKER -o req.json`: the first third of the ferry. Reads the worker's
//! disk; its private key stays there.

use crate::base::shell;
use anyhow::Result;
use std::path::PathBuf;

use super::output;
use super::worker::{Worker, carry_out, sources};
use crate::base::refusal::Refusal;
use crate::checks::certificates::store_key::{NEW_KEY, StoreKey};
use crate::cli::Outcome;
use crate::cli::answers::Answers;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::finding::Finding;
use crate::node::Version;
use crate::pki::client_key::usable;
use crate::pki::ferry::RequestFile;
use crate::pki::x509::key::PrivateKey;
use crate::report::{bounded, json};
use crate::session::Session;

arguments! {
    /// write a request for a kubelet client certificate, to be signed where the CA key is. The
    /// worker's private key stays on its disk; the request holds no secret
    #[argh(subcommand, name = "request")]
    pub struct RequestCertificate {
        own {
            /// disks of the worker
            #[argh(positional)]
            pub src: Vec<PathBuf>,
            /// a folder where the worker is mounted, instead of a disk
            #[argh(option)]
            pub root: Vec<PathBuf>,
        }
        output_file, force,
        own {
            /// make a new key on the worker's disk first (a plan is shown, and asked about)
            #[argh(switch)]
            pub new_key: bool,
        }
        yes, node, json, now,
    }
}

/// Reads, and writes the request.
pub fn run(command: &RequestCertificate) -> Result<Result<Outcome>, Stop> {
    let sources = sources(&command.src, &command.root)?;
    let answers = Answers {
        yes: command.yes,
        json: command.json,
        ..Answers::default()
    };
    if command.new_key {
        answers.check()?;
    }
    let settings = args::with_now(command.now);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(request(command, &session, answers))
}

fn request(
    command: &RequestCertificate,
    session: &Session<'_>,
    answers: Answers,
) -> Result<Outcome> {
    output::refuse_existing(&command.output, command.force)?;
    let now = session.settings.now;
    let worker = Worker::meet(session, command.node.as_deref(), now)?;
    let version = worker.report.node.kubelet_version.value;
    // kubelets ask for keyEncipherment up to 1.26 (kubernetes#111660).
    let old_kubelet = version.is_none_or(|version| {
        version
            < Version {
                major: 1,
                minor: 27,
                patch: 0,
            }
    });
    let version = version.map(|version| version.to_string());
    let old = worker.client.certificate.clone();
    let file = |key: &PrivateKey| {
        let file = RequestFile::new(&worker.node, key, &worker.own, version, old_kubelet, now)?;
        anyhow::Ok(file.with_proof(old.as_ref(), key))
    };
    let found = if command.new_key {
        None
    } else {
        usable(&worker.report.guest, &worker.client)
    };
    let file = match &found {
        Some(found) => file(&found.key)?,
        None if command.new_key => {
            let (remedy, key) = StoreKey::new(&worker.node, &worker.client)?;
            let file = file(&key)?;
            let asked_for = Finding::new(NEW_KEY, "a new key was asked for").with_remedy(remedy);
            carry_out(session, worker.report, &asked_for, answers)?;
            file
        }
        None => return Err(no_key(command, &worker).into()),
    };
    output::write(&command.output, &pretty(&file)?, 0o644, command.force)?;
    say(
        command,
        &file,
        found.map(|found| found.path.to_string()),
        &worker.typed,
    );
    Ok(Outcome::Clean)
}

fn no_key(command: &RequestCertificate, worker: &Worker) -> Refusal {
    Refusal::new(
        format!(
            "{} has no usable key for its kubelet's client certificate",
            worker.node
        ),
        "a request must be signed with the key that the certificate is for",
        format!(
            "rescue certs request {} -o {} --new-key    (makes one on its disk; shows the plan \
             and asks)",
            worker.typed,
            shell::quoted(&command.output)
        ),
    )
}

/// As people and other programs like to read it.
pub(super) fn pretty(file: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(file)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn say(command: &RequestCertificate, file: &RequestFile, key: Option<String>, worker: &str) {
    if command.json {
        println!("{}", json::request(&command.output, file));
        return;
    }
    let output = shell::quoted(&command.output);
    match key {
        Some(path) => {
            println!(
                "Request for node {} written to {output}, with the key in {path}; nothing was \
                 changed.",
                file.node
            )
        }
        None => println!(
            "Request for node {} written to {output}, with the new key.",
            file.node
        ),
    }
    let ca: Vec<String> = file
        .ca
        .iter()
        .map(crate::pki::ferry::CaName::shown)
        .collect();
    println!(
        "It holds no secret. It is for the cluster with the CA {}.",
        bounded::names(&ca)
    );
    let trust = if file.certificate.is_some() {
        String::new()
    } else {
        format!(" --trust {}", file.node)
    };
    if file.certificate.is_none() {
        println!(
            "Nothing in it proves that it is node {}'s: who signs it has to know, and says so \
             with --trust.",
            file.node
        );
    }
    println!(
        "Next: rescue certs sign --ca CONTROL-PLANE {output} -o signed.json{trust}    (where that \
         disk is)"
    );
    println!("then: rescue certs install {worker} signed.json    (here)");
}
