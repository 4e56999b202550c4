//! Members removed, moved, cloned and put together anew: real etcd must start on each result with
//! every key at its revision, take writes that survive a restart, and give the same hash on all
//! members.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use rescue::change::folder::{BuildFolder as _, DirectorySink, Sources};
use rescue::etcd::format::members::Member;
use rescue::etcd::operations::rebuild::{Base, DatabaseFile, Recipe, base, changes};
use rescue::etcd::read::member::{MemberData, Place};
use rescue::guest::{Guest, GuestPath};
use rescue::tree::FolderTree;
use tests::Cmd;
use tests::etcd::{self, Cluster, Key, Version, files};

/// Three killed members with snapshots, an older database, and a saved one.
struct Subject {
    cluster: Cluster,
    folder: tempfile::TempDir,
    held: (Vec<Key>, i64),
}

impl Subject {
    fn new(version: &Version) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut cluster = Cluster::start(version, 3, 40)?;
        cluster.put_many("k", 200, "value")?;
        for number in 0..60 {
            cluster.put(&format!("small{number}"), "x")?;
        }
        cluster
            .ctl(0)
            .args(["snapshot", "save"])
            .arg(folder.path().join("saved"))
            .ok()?;
        for number in 0..60 {
            cluster.put(&format!("later{number}"), "x")?;
        }
        cluster.ctl(0).args(["del", "small3"]).ok()?;
        cluster.put("last", "acknowledged")?;
        let held = cluster.keys(0)?;
        cluster.kill()?;
        for member in &cluster.members {
            etcd::copy(&member.data_dir, &folder.path().join(&member.name))?;
        }
        Ok(Self {
            cluster,
            folder,
            held,
        })
    }

    /// The data of a member as it was when it was killed.
    fn guest(&self, number: usize) -> Result<(Guest, MemberData)> {
        let folder = self.folder.path().join(&self.cluster.members[number].name);
        guest(&folder)
    }

    /// Data and guest of all.
    fn all(&self) -> Result<Vec<(Guest, MemberData)>> {
        (0..3).map(|number| self.guest(number)).collect()
    }

    /// What all members hold together is on the one whose log is longest.
    fn newest(all: &[(Guest, MemberData)]) -> usize {
        (0..all.len())
            .max_by_key(|number| (all[*number].1.log.last_term(), all[*number].1.log.last))
            .unwrap_or(0)
    }

    /// Puts what `recipe` makes in the place of a running member's data.
    fn put(&self, recipe: &Recipe, guests: &[&Guest], number: usize) -> Result<()> {
        let data_dir = &self.cluster.members[number].data_dir;
        place(recipe, guests, data_dir)
    }

    /// Puts a member's data back as it was killed.
    fn put_back(&self, number: usize) -> Result<()> {
        let member = &self.cluster.members[number];
        if member.data_dir.exists() {
            fs::remove_dir_all(&member.data_dir)?;
        }
        etcd::copy(&self.folder.path().join(&member.name), &member.data_dir)
    }

    /// These members start, hold everything, agree, and keep what is written now.
    fn judge(&mut self, numbers: &[usize]) -> Result<()> {
        judge(&mut self.cluster, numbers, &self.held)
    }
}

pub fn guest(folder: &Path) -> Result<(Guest, MemberData)> {
    let guest = Guest::new(
        folder.display().to_string(),
        Rc::new(FolderTree::open(folder)?),
        Vec::new(),
    );
    let data = MemberData::read(&guest, &Place::new(GuestPath::new("/"), None));
    Ok((guest, data))
}

/// Builds the folder `member` of a data folder that is made anew.
pub fn place(recipe: &Recipe, guests: &[&Guest], data_dir: &Path) -> Result<()> {
    if data_dir.exists() {
        fs::remove_dir_all(data_dir)?;
    }
    fs::create_dir_all(data_dir)?;
    let member = data_dir.join("member");
    let mut sink = DirectorySink::create(&member)?;
    recipe.build(&Sources::new(guests.iter().copied()), &mut sink)?;
    sink.finish()?;
    let size: u64 = walk(&member)?
        .iter()
        .map(|file| file.metadata().map(|meta| meta.len()).unwrap_or(0))
        .sum();
    ensure!(
        size <= recipe.bytes(),
        "{size} bytes, announced were {}",
        recipe.bytes()
    );
    let built = Guest::new("built", Rc::new(FolderTree::open(data_dir)?), Vec::new());
    recipe.verify(&built, &GuestPath::new("/member"))
}

fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(walk(&path)?)
        } else {
            files.push(path)
        }
    }
    Ok(files)
}

pub fn judge(cluster: &mut Cluster, numbers: &[usize], held: &(Vec<Key>, i64)) -> Result<()> {
    for number in numbers {
        etcd::check_database(
            cluster.version(),
            &files::database(&cluster.members[*number].data_dir),
        )?;
    }
    cluster.run_only(numbers)?;
    let agree = |cluster: &Cluster| -> Result<()> {
        let revision = cluster.keys(numbers[0])?.1;
        let hashes = numbers
            .iter()
            .map(|number| cluster.hash(*number, revision))
            .collect::<Result<Vec<_>>>()?;
        ensure!(
            hashes.windows(2).all(|pair| pair[0] == pair[1]),
            "hashes differ: {hashes:?}"
        );
        Ok(())
    };
    for number in numbers {
        let now = cluster.keys(*number)?;
        ensure!(now.1 == held.1, "revision {} instead of {}", now.1, held.1);
        ensure!(now.0 == held.0, "keys differ");
    }
    agree(cluster)?;
    let listed = cluster
        .ctl(numbers[0])
        .args(["member", "list"])
        .ok()?
        .stdout;
    ensure!(listed.lines().count() == numbers.len(), "members: {listed}");
    cluster.ctl(numbers[0]).args(["put", "new", "write"]).ok()?;
    cluster.kill()?;
    cluster.run_only(numbers)?;
    for number in numbers {
        let got = cluster
            .ctl(*number)
            .args(["get", "new", "--print-value-only"])
            .ok()?
            .stdout;
        ensure!(
            got.trim() == "write",
            "the new write did not survive a restart: {got:?}"
        );
    }
    agree(cluster)?;
    cluster.kill()
}

fn own_database(guest: &Guest, data: &MemberData) -> Result<DatabaseFile> {
    Ok(DatabaseFile::examine(guest, &data.place.db())?)
}

fn base_of(guest: &Guest, data: &MemberData) -> Result<Rc<Base>> {
    let database = own_database(guest, data)?;
    Ok(Base::new(
        guest,
        data,
        database,
        Some(data),
        base::Options::default(),
    )?)
}

fn id(data: &MemberData) -> Result<u64> {
    Ok(data.log.identity.context("an identity")?.member)
}

#[test]
fn members_are_rebuilt_and_real_etcd_agrees() -> Result<()> {
    for version in Version::all()? {
        let mut subject = Subject::new(&version)?;
        for (name, case) in CASES {
            case(&mut subject).with_context(|| {
                format!(
                    "etcd {}: {name}: {}",
                    version.name,
                    subject.cluster.last_words()
                )
            })?;
        }
    }
    Ok(())
}

type Case = fn(&mut Subject) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("solo", solo),
    ("clone", clone),
    ("one of three removed", one_removed),
    ("clone to one, from a saved snapshot", clone_to_one),
    ("clone to five, from another's database", clone_to_five),
    ("lost snapshots", lost_snapshots),
    ("the log ends before the database", shortened),
    ("a learner goes", learner),
    // Last: their ports stay other ones.
    ("all came back with other addresses", moved),
];

/// All other voters go; the one with the newest log stays what it is.
fn solo(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let best = Subject::newest(&all);
    let (guest, data) = &all[best];
    let base = base_of(guest, data)?;
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let own = data.log.identity.context("an identity")?;
    let others = base
        .members
        .list
        .keys()
        .copied()
        .filter(|id| *id != own.member);
    let recipe = Recipe::agreed(&base, own, term, changes::remove(others));
    subject.put(&recipe, &[guest], best)?;
    subject.judge(&[best])
}

/// The newest history on all three disks, with new IDs.
fn clone(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let (guest, data) = &all[Subject::newest(&all)];
    let base = base_of(guest, data)?;
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let members: Vec<Member> = subject
        .cluster
        .members
        .iter()
        .map(|member| Member {
            name: member.name.clone(),
            peer_urls: vec![member.peer_url()],
            ..Member::default()
        })
        .collect();
    for (number, recipe) in Recipe::clones(&base, &members, "rescue-test", term)
        .iter()
        .enumerate()
    {
        subject.put(recipe, &[guest], number)?;
    }
    subject.judge(&[0, 1, 2])
}

/// One goes, the two others stay; only the newest of them is changed.
fn one_removed(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let best = Subject::newest(&all);
    let (gone, stays) = ((best + 1) % 3, (best + 2) % 3);
    let (guest, data) = &all[best];
    let base = base_of(guest, data)?;
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let recipe = Recipe::agreed(
        &base,
        data.log.identity.context("an identity")?,
        term,
        changes::remove([id(&all[gone].1)?]),
    );
    subject.put(&recipe, &[guest], best)?;
    subject.put_back(stays)?;
    subject.judge(&[best, stays])
}

/// One new member out of three, whose log is the newest's, and whose database is what
/// `etcdctl snapshot save` wrote long before.
fn clone_to_one(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let (guest, data) = &all[Subject::newest(&all)];
    let copies = Guest::new(
        "copies",
        Rc::new(FolderTree::open(subject.folder.path())?),
        Vec::new(),
    );
    let saved = DatabaseFile::examine(&copies, &GuestPath::new("/saved"))?;
    ensure!(saved.is_saved && saved.facts.consistent_index < data.consistent_index());
    let base = Base::new(guest, data, saved, None, base::Options::default())?;
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let peer_urls = vec![subject.cluster.members[1].peer_url()];
    let member = Member {
        name: "m2".to_owned(),
        peer_urls,
        ..Member::default()
    };
    let recipes = Recipe::clones(&base, &[member], "rescue-one", term);
    subject.put(&recipes[0], &[guest, &copies], 1)?;
    subject.judge(&[1])
}

/// Five new members, with the newest log and the database of another member.
fn clone_to_five(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let best = Subject::newest(&all);
    let (guest, data) = &all[best];
    let (other, owner) = &all[(best + 1) % 3];
    let base = Base::new(
        guest,
        data,
        own_database(other, owner)?,
        Some(owner),
        base::Options::default(),
    )?;
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let mut five = Cluster::prepare(subject.cluster.version(), 5, 40, |folder, name| {
        folder.join(name)
    })?;
    let members: Vec<Member> = five
        .members
        .iter()
        .map(|member| Member {
            name: member.name.clone(),
            peer_urls: vec![member.peer_url()],
            ..Member::default()
        })
        .collect();
    for (member, recipe) in
        five.members
            .iter()
            .zip(Recipe::clones(&base, &members, "rescue-five", term))
    {
        place(&recipe, &[guest, other], &member.data_dir)?;
    }
    judge(&mut five, &[0, 1, 2, 3, 4], &subject.held).with_context(|| five.last_words())
}

/// All snapshots of all members are gone; each gets one that is made anew, and its log and identity
/// stay.
fn lost_snapshots(subject: &mut Subject) -> Result<()> {
    for (number, (_, mut data)) in subject.all()?.into_iter().enumerate() {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("copy");
        etcd::copy(
            &subject
                .folder
                .path()
                .join(&subject.cluster.members[number].name),
            &copy,
        )?;
        for (file, _) in data.snapshots.drain(..) {
            fs::remove_file(copy.join(file.path.as_path().strip_prefix("/")?))?;
        }
        let (guest, data) = guest(&copy)?;
        // With the log's first entry there etcd could do without; this is how it is where the first
        // files are gone.
        let mut base = Base::clone(&*base_of(&guest, &data)?);
        let whole = Base::fresh_start(&data, &base.database)?;
        (base.start, base.from) = whole;
        let recipe = Recipe::in_place(
            &Rc::new(base),
            data.log.identity.context("an identity")?,
            None,
        );
        subject.put(&recipe, &[&guest], number)?;
    }
    subject.judge(&[0, 1, 2])
}

/// The only member's log has lost its end, and the database holds more: the log begins anew behind
/// that, and an older database beside it is refused.
fn shortened(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let best = Subject::newest(&all);
    let (guest, data) = &all[best];
    let own = data.log.identity.context("an identity")?;
    let base = base_of(guest, data)?;
    let others: Vec<u64> = base
        .members
        .list
        .keys()
        .copied()
        .filter(|id| *id != own.member)
        .collect();
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let kept = tempfile::tempdir()?;
    let older = kept.path().join("db");
    fs::copy(
        subject.cluster.members[best]
            .data_dir
            .join("member/snap/db"),
        &older,
    )?;
    subject.put(
        &Recipe::agreed(&base, own, term, changes::remove(others)),
        &[guest],
        best,
    )?;
    // It applies what is in its log and writes its database.
    subject.judge(&[best])?;
    let data_dir = subject.cluster.members[best].data_dir.clone();
    // etcd writes its database every 100 ms.
    let write = |ctl: &dyn Fn() -> Cmd| {
        ctl().args(["put", "after", "0"]).ok()?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        Ok(())
    };
    etcd::serve(subject.cluster.version(), &data_dir, write)?.map_err(anyhow::Error::msg)?;
    let (whole, data) = self::guest(&data_dir)?;
    // Behind the changes of the membership.
    let cut = data.consistent_index() - 1;
    let at = offset_of(&whole, &data, cut)?;
    let file = fs::OpenOptions::new().write(true).open(
        data_dir.join(
            data.log
                .segments
                .last()
                .context("a file")?
                .segment
                .path
                .as_path()
                .strip_prefix("/")?,
        ),
    )?;
    file.set_len(at)?;
    let short = tempfile::tempdir()?;
    etcd::copy(&data_dir, &short.path().join("copy"))?;
    let (guest, data) = self::guest(&short.path().join("copy"))?;
    ensure!(data.log.last == cut - 1);
    let base = base_of(&guest, &data)?;
    ensure!(base.missing > 0);
    let term = base.next_term([&data]);
    subject.put(
        &Recipe::agreed(&base, own, term, Vec::new()),
        &[&guest],
        best,
    )?;
    let stale = short.path().join("stale");
    etcd::copy(&data_dir, &stale)?;
    fs::copy(&older, stale.join("member/snap/db"))?;
    let says = etcd::starts(subject.cluster.version(), &stale)?;
    ensure!(
        says.is_err(),
        "an older database misses the lost entries, and etcd starts with it"
    );
    let held = etcd::holds(subject.cluster.version(), &data_dir)?.map_err(anyhow::Error::msg)?;
    let keys: Vec<&Key> = held
        .0
        .iter()
        .filter(|key| !["new", "after"].contains(&key.key.as_str()))
        .collect();
    ensure!(
        keys == subject.held.0.iter().collect::<Vec<_>>(),
        "keys differ"
    );
    let again = etcd::holds(subject.cluster.version(), &data_dir)?.map_err(anyhow::Error::msg)?;
    ensure!(again.1 > held.1, "the new write did not survive a restart");
    Ok(())
}

/// Where the record of an entry in the last file begins.
pub fn offset_of(guest: &Guest, data: &MemberData, index: u64) -> Result<u64> {
    use rescue::etcd::format::wal::segment::{ENTRY, Reader};
    let look = data.log.segments.last().context("a file")?;
    let file = rescue::etcd::format::file::File::open(guest, &look.segment.path)?;
    let mut reader = Reader::new(&file, 0, true);
    while let Ok(record) = reader.next_record()? {
        if record.kind == ENTRY
            && rescue::etcd::format::raft::Entry::parse(record.data)?.index == index
        {
            return Ok(record.offset);
        }
    }
    anyhow::bail!("entry {index} is not in the last file")
}

/// The same three members at other peer URLs.
fn moved(subject: &mut Subject) -> Result<()> {
    let all = subject.all()?;
    let (guest, data) = &all[Subject::newest(&all)];
    let base = base_of(guest, data)?;
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let mut moves = Vec::new();
    for (number, (_, data)) in all.iter().enumerate() {
        subject.cluster.move_peer(number)?;
        let member = base.members.list.get(&id(data)?).context("a member")?;
        moves.push(changes::update(
            member,
            vec![subject.cluster.members[number].peer_url()],
        ));
    }
    for (number, (_, data)) in all.iter().enumerate() {
        let recipe = Recipe::agreed(
            &base,
            data.log.identity.context("an identity")?,
            term,
            moves.clone(),
        );
        subject.put(&recipe, &[guest], number)?;
    }
    subject.judge(&[0, 1, 2])
}

/// A learner that never came up is in the way of nothing, and goes.
fn learner(subject: &mut Subject) -> Result<()> {
    for number in 0..3 {
        subject.put_back(number)?;
    }
    subject.cluster.run()?;
    let add = [
        "member",
        "add",
        "late",
        "--learner",
        "--peer-urls=http://127.0.0.1:1",
    ];
    // etcd adds nobody before all have been connected for five seconds.
    let started = std::time::Instant::now();
    while subject.cluster.ctl(0).args(add).run()?.code != 0 {
        ensure!(
            started.elapsed() < std::time::Duration::from_secs(60),
            "no learner is taken"
        );
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    subject.cluster.kill()?;
    let folders: Vec<_> = subject
        .cluster
        .members
        .iter()
        .map(|member| member.data_dir.clone())
        .collect();
    let all = folders
        .iter()
        .map(|folder| guest(folder))
        .collect::<Result<Vec<_>>>()?;
    let (guest, data) = &all[Subject::newest(&all)];
    let base = base_of(guest, data)?;
    let learners: Vec<u64> = base
        .members
        .list
        .values()
        .filter(|member| member.is_learner)
        .map(|member| member.id)
        .collect();
    ensure!(learners.len() == 1, "{:?}", base.members);
    let term = base.next_term(all.iter().map(|(_, data)| data));
    let built = tempfile::tempdir()?;
    for (number, (_, data)) in all.iter().enumerate() {
        let recipe = Recipe::agreed(
            &base,
            data.log.identity.context("an identity")?,
            term,
            changes::remove(learners.clone()),
        );
        place(&recipe, &[guest], &built.path().join(number.to_string()))?;
    }
    for (number, folder) in folders.iter().enumerate() {
        fs::remove_dir_all(folder)?;
        etcd::copy(&built.path().join(number.to_string()), folder)?;
    }
    subject.judge(&[0, 1, 2])
}
