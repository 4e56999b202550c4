//! `rescue certs install WORKER FILE`: the last third of the ferry, and the way out of a bundle.

use crate::base::shell;
use crate::checks::certificates::install::BROUGHT;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

use super::worker::{Worker, carry_out, outcome, sources};
use super::{output, passphrase};
use crate::base::refusal::Refusal;
use crate::checks::certificates::install::{InstallKubeletClient, Recipient};
use crate::cli::Outcome;
use crate::cli::answers::Answers;
use crate::cli::args::{self, Stop};
use crate::cli::shared_flags::arguments;
use crate::cli::terminal::Terminal;
use crate::finding::Finding;
use crate::in_use::read_only;
use crate::pki::bundle::Sealed;
use crate::pki::ferry::{self, CertificateFile};
use crate::pki::x509::certificate::Certificate;
use crate::pki::{bundle, client_key};
use crate::report::json;
use crate::session::Session;
use crate::settings::Settings;

arguments! {
    /// install a kubelet client certificate that was signed elsewhere: what `rescue certs sign` or
    /// `rescue certs bundle` wrote, or a certificate in PEM from any signer of the cluster's CA.
    /// Shows the plan and asks; `rescue undo` takes it back
    #[argh(subcommand, name = "install")]
    pub struct Install {
        own {
            /// disks of the worker, and last the file
            #[argh(positional)]
            pub words: Vec<PathBuf>,
            /// a folder where the worker is mounted, instead of a disk
            #[argh(option)]
            pub root: Vec<PathBuf>,
            /// of a bundle: a file whose first line is its passphrase (default: $RESCUE_PASSPHRASE,
            /// else it is asked for)
            #[argh(option)]
            pub passphrase_file: Option<PathBuf>,
            /// install a key from a bundle on this node, by name or disk, although its disk does
            /// not prove its name
            #[argh(option)]
            pub trust: Vec<String>,
        }
        yes, dry_run, node, json_with_answer, now,
    }
}

/// Reads the file, proves it against the node, installs it.
pub fn run(command: &Install) -> Result<Result<Outcome>, Stop> {
    let usage = || Stop::Usage("rescue certs install WORKER signed.json".to_owned());
    let (file, disks) = command.words.split_last().ok_or_else(usage)?;
    if disks.is_empty() && command.root.is_empty() {
        return Err(usage());
    }
    let sources = sources(disks, &command.root)?;
    let answers = Answers {
        yes: command.yes,
        dry_run: command.dry_run,
        json: command.json,
        ..Answers::default()
    };
    answers.check()?;
    let settings = Settings {
        trust: command.trust.clone(),
        ..args::with_now(command.now)
    };
    read_only::protect(&sources);
    let session = Session {
        sources: &sources,
        settings: &settings,
        ui: &Terminal,
    };
    Ok(install(command, &session, file, answers))
}

fn install(
    command: &Install,
    session: &Session<'_>,
    file: &Path,
    answers: Answers,
) -> Result<Outcome> {
    let bytes = output::read(file)?;
    let worker = Worker::meet(session, command.node.as_deref(), session.settings.now)?;
    let keys = client_key::all(&worker.report.guest, &worker.client);
    let recipient = Recipient {
        client: &worker.client,
        node: &worker.node,
        keys: &keys,
        own: &worker.own,
        party: &worker.report.party,
        now: session.settings.now,
        typed: &worker.typed,
    };
    let remedy = choose(command, &recipient, &bytes, &shell::quoted(file))?;
    let asked_for =
        Finding::new(BROUGHT, "a certificate was brought for this node").with_remedy(remedy);
    let Some(receipt) = carry_out(session, worker.report, &asked_for, answers)? else {
        return Ok(Outcome::Clean);
    };
    if answers.json {
        println!(
            "{}",
            json::repair(
                vec![json::node(&receipt.after)],
                Some(vec![json::receipt(&receipt)]),
                Vec::new()
            )
        );
    } else if receipt.after.needs_repair() {
        println!(
            "Next: rescue repair {}    (what is left above)",
            worker.typed
        );
    } else {
        println!(
            "Next: boot {}; its kubelet joins with the new certificate.",
            worker.node
        );
    }
    Ok(outcome(&receipt))
}

/// What the file holds for this node.
fn choose(
    command: &Install,
    recipient: &Recipient<'_>,
    bytes: &[u8],
    file: &str,
) -> Result<InstallKubeletClient> {
    if is_pem(bytes) {
        let all = Certificate::all_from_pem(bytes).with_context(|| format!("reading {file}"))?;
        let certificate = all
            .first()
            .with_context(|| format!("{file} holds no certificate"))?;
        return Ok(recipient.install(certificate, None, file)?);
    }
    let signed = match bundle::is_sealed(bytes) {
        true => unseal(command, bytes, file)?,
        false => {
            CertificateFile::read(bytes, ferry::SIGNED).map_err(|error| not_a_file(file, &error))?
        }
    };
    let entry = recipient.entry(&signed, file)?;
    let all = Certificate::all_from_pem(entry.certificate.as_bytes())
        .with_context(|| format!("reading {file}"))?;
    let certificate = all
        .first()
        .with_context(|| format!("{file} holds no certificate"))?;
    Ok(recipient.install(certificate, entry.key.as_ref(), file)?)
}

/// A bundle, with its passphrase.
fn unseal(command: &Install, bytes: &[u8], file: &str) -> Result<CertificateFile> {
    let passphrase = passphrase::ask(command.passphrase_file.as_deref(), file)?;
    let plain = bundle::open(bytes, &passphrase).map_err(|sealed| {
        let next = match sealed {
            Sealed::WrongPassphrase => {
                "run the same command again with the passphrase that the \
                bundle was made with"
            }
            _ => {
                "copy it again from where it was made, or have it made again with rescue certs \
                bundle"
            }
        };
        Refusal::new(
            format!("{file} cannot be opened: {sealed}"),
            "nothing was changed",
            next,
        )
    })?;
    Ok(CertificateFile::read(&plain, ferry::BUNDLE).map_err(|error| not_a_file(file, &error))?)
}

/// PEM may have text before its first block; JSON begins with a brace.
fn is_pem(bytes: &[u8]) -> bool {
    let text = bytes.trim_ascii_start();
    !text.starts_with(b"{") && !crate::pki::x509::pem::certificates(bytes).is_empty()
}

fn not_a_file(file: &str, error: &anyhow::Error) -> Refusal {
    Refusal::new(
        format!("{file} cannot be used: {error:#}"),
        "nothing was changed",
        "give the file that rescue certs sign or rescue certs bundle wrote, or a certificate in \
         PEM",
    )
}
