//! Replacing one user's certificate and key in a kubeconfig's own text: every other byte stays,
//! comments, order, quotes and line ends included. What cannot be edited so is refused, and the
//! result is compared with what was meant before it is used.

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::Value;
use std::ops::Range;

use crate::base::yaml;
use crate::guest::GuestPath;

/// A user's new certificate or key.
#[derive(Clone, Copy)]
pub enum NewMaterial<'a> {
    /// PEM, for the `…-data` key.
    Inline(&'a [u8]),
    /// A file, absolute in the guest.
    File(&'a GuestPath),
}

impl std::fmt::Debug for NewMaterial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::File(path) => write!(f, "File({path})"),
        }
    }
}

impl NewMaterial<'_> {
    fn key(&self, name: &str) -> String {
        match self {
            Self::Inline(_) => format!("{name}-data"),
            Self::File(_) => name.to_owned(),
        }
    }

    fn other_key(&self, name: &str) -> String {
        match self {
            Self::Inline(_) => name.to_owned(),
            Self::File(_) => format!("{name}-data"),
        }
    }

    fn value(&self) -> Result<String> {
        match self {
            Self::Inline(bytes) => Ok(base64::engine::general_purpose::STANDARD.encode(bytes)),
            Self::File(path) => path
                .as_path()
                .to_str()
                .map(str::to_owned)
                .context("a path that is not UTF-8 cannot stand in YAML"),
        }
    }
}

/// The list and the mapping in its items that a change is for.
#[derive(Debug, Clone, Copy)]
struct Section {
    list: &'static str,
    item: &'static str,
}

const USERS: Section = Section {
    list: "users",
    item: "user",
};
const CLUSTERS: Section = Section {
    list: "clusters",
    item: "cluster",
};

/// `text` with the inline CA certificates of the cluster called `cluster` replaced.
pub fn replace_authority(text: &[u8], cluster: &str, certificates: &[u8]) -> Result<Vec<u8>> {
    replace(
        text,
        CLUSTERS,
        cluster,
        &[("certificate-authority", NewMaterial::Inline(certificates))],
    )
}

/// `text` with the certificate and key of the user called `user` replaced. Keys of the other form
/// (`…-data` beside a file) go, because clientcmd refuses both together.
pub fn replace_credentials(
    text: &[u8],
    user: &str,
    certificate: NewMaterial<'_>,
    key: NewMaterial<'_>,
) -> Result<Vec<u8>> {
    replace(
        text,
        USERS,
        user,
        &[("client-certificate", certificate), ("client-key", key)],
    )
}

fn replace(
    text: &[u8],
    section: Section,
    name: &str,
    new: &[(&str, NewMaterial<'_>)],
) -> Result<Vec<u8>> {
    let before = yaml::parse(text)?;
    let text = std::str::from_utf8(text).context("the file is not UTF-8 text")?;
    // It goes: what is written is ours, and nobody needs it.
    let mut text = text.strip_prefix('\u{feff}').unwrap_or(text).to_owned();
    let mut meant = before;
    for (key, material) in new {
        let (wanted, unwanted) = (material.key(key), material.other_key(key));
        let change = Change {
            section,
            wanted,
            unwanted,
            value: material.value()?,
        };
        text = change.in_text(&text, name)?;
        change.in_model(&mut meant, name)?;
    }
    let after = yaml::parse(text.as_bytes()).context("checking the edited file")?;
    if after != meant {
        bail!(
            "the file is written in a way that cannot be edited safely; its {} entry for {name:?} \
             must be edited by hand",
            section.item
        );
    }
    Ok(text.into_bytes())
}

struct Change {
    section: Section,
    wanted: String,
    unwanted: String,
    value: String,
}

impl Change {
    fn in_model(&self, root: &mut Value, name: &str) -> Result<()> {
        let Section { list, item } = self.section;
        let entry = root
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .and_then(|all| {
                all.iter_mut()
                    .find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))
            })
            .and_then(Value::as_object_mut)
            .with_context(|| format!("there is no {item} {name:?}"))?;
        let body = entry.entry(item).or_insert(Value::Null);
        if body.is_null() {
            *body = Value::Object(serde_json::Map::new());
        }
        let body = body
            .as_object_mut()
            .with_context(|| format!("{item} {name:?} is not a mapping"))?;
        body.remove(&self.unwanted);
        body.insert(self.wanted.clone(), Value::String(self.value.clone()));
        Ok(())
    }

    fn in_text(&self, text: &str, name: &str) -> Result<String> {
        let document = Document::parse(text)?;
        let body = document.body(self.section, name)?;
        let wanted = body.entry(&self.wanted);
        let unwanted = body.entry(&self.unwanted);
        for entry in wanted.iter().chain(&unwanted) {
            entry.key.must_be_plain_text()?;
            entry.value.must_be_plain_text()?;
        }
        let mut edits = Vec::new();
        match (wanted, unwanted) {
            (Some(wanted), unwanted) => {
                edits.push(document.replace_value(wanted, &self.value)?);
                if let Some(unwanted) = unwanted {
                    edits.push(document.removal(&body, unwanted)?);
                }
            }
            (None, Some(unwanted)) => {
                edits.push((
                    unwanted.key.range.clone(),
                    unwanted.key.renamed(&self.wanted),
                ));
                edits.push(document.replace_value(unwanted, &self.value)?);
            }
            (None, None) => edits.push(document.insertion(&body, &self.wanted, &self.value)?),
        }
        apply(text, edits)
    }
}

/// Replaces byte ranges that do not overlap.
fn apply(text: &str, mut edits: Vec<(Range<usize>, String)>) -> Result<String> {
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    let mut text = text.to_owned();
    for (range, new) in edits {
        if text.get(range.clone()).is_none() {
            bail!("the file's structure could not be followed");
        }
        text.replace_range(range, &new);
    }
    Ok(text)
}

/// A node of the document with its place in the text.
#[derive(Debug)]
struct Node {
    range: Range<usize>,
    column: usize,
    special: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Scalar { text: String, style: ScalarStyle },
    Map(Vec<Entry>),
    List(Vec<Node>),
    Alias,
}

#[derive(Debug)]
struct Entry {
    key: Node,
    value: Node,
}

impl Node {
    fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// `text` in this scalar's quotes.
    fn renamed(&self, text: &str) -> String {
        match self.kind {
            Kind::Scalar { style, .. } => scalar(text, style),
            _ => text.to_owned(),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key.text() == Some(key)),
            _ => None,
        }
    }

    /// Refuses anchors, aliases and tags: something else may depend on this node.
    fn must_be_plain(&self) -> Result<()> {
        if self.special || matches!(self.kind, Kind::Alias) {
            bail!("YAML anchors, aliases and tags in an entry cannot be edited safely");
        }
        Ok(())
    }

    fn must_be_plain_text(&self) -> Result<()> {
        self.must_be_plain()?;
        self.text()
            .map(drop)
            .context("a certificate or key that is not text cannot be edited safely")
    }
}

/// The mapping below `user:` or `cluster:`.
struct Body<'a> {
    /// Its entries; none for a key without a value.
    entries: &'a [Entry],
    node: &'a Node,
    /// The key itself.
    key: &'a Node,
}

impl Body<'_> {
    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.key.text() == Some(key))
    }
}

struct Document<'a> {
    text: &'a str,
    root: Node,
}

impl<'a> Document<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let root = build(text)?;
        Ok(Self { text, root })
    }

    fn body(&self, section: Section, name: &str) -> Result<Body<'_>> {
        let item_key = section.item;
        let all = self
            .root
            .entry(section.list)
            .with_context(|| format!("there are no {}", section.list))?;
        all.value.must_be_plain()?;
        let Kind::List(list) = &all.value.kind else {
            bail!("the {} are not a list", section.list);
        };
        let mut matching = list
            .iter()
            .filter(|item| item.entry("name").and_then(|entry| entry.value.text()) == Some(name));
        let item = matching
            .next()
            .with_context(|| format!("there is no {item_key} {name:?}"))?;
        if matching.next().is_some() {
            bail!("there are two {} called {name:?}", section.list);
        }
        item.must_be_plain()?;
        let body = item
            .entry(item_key)
            .with_context(|| format!("{item_key} {name:?} has no entry `{item_key}`"))?;
        body.value.must_be_plain()?;
        let entries = match &body.value.kind {
            Kind::Map(entries) => entries.as_slice(),
            Kind::Scalar {
                text,
                style: ScalarStyle::Plain,
            } if text.is_empty() => &[],
            _ => bail!("{item_key} {name:?} is not a mapping"),
        };
        if entries.iter().any(|entry| entry.key.text() == Some("<<")) {
            bail!("YAML merge keys in an entry cannot be edited safely");
        }
        Ok(Body {
            entries,
            node: &body.value,
            key: &body.key,
        })
    }

    fn is_flow(&self, node: &Node) -> bool {
        self.text
            .get(node.range.start..)
            .is_some_and(|rest| rest.starts_with('{'))
    }

    fn replace_value(&self, entry: &Entry, value: &str) -> Result<(Range<usize>, String)> {
        let Kind::Scalar { style, .. } = &entry.value.kind else {
            bail!("a certificate or key that is not text cannot be edited safely");
        };
        let after_colon = self.after_colon(&entry.key)?;
        Ok(match style {
            ScalarStyle::Plain if entry.value.range.is_empty() => (
                after_colon..after_colon,
                format!(" {}", scalar(value, *style)),
            ),
            ScalarStyle::Literal | ScalarStyle::Folded => {
                // From the indicator to the last line's end; the next key's line stays.
                let from = after_colon + blanks(self.text, after_colon);
                let block = self
                    .text
                    .get(from..entry.value.range.end)
                    .context("a block scalar without an end")?;
                (
                    from..from + block.trim_end().len(),
                    scalar(value, ScalarStyle::Plain),
                )
            }
            style => (entry.value.range.clone(), scalar(value, *style)),
        })
    }

    fn removal(&self, body: &Body<'_>, entry: &Entry) -> Result<(Range<usize>, String)> {
        if !self.is_flow(body.node) {
            let from = self.line_start(&entry.key)?;
            let value_end = self
                .text
                .get(..entry.value.range.end)
                .map_or(0, |text| text.trim_end().len());
            let end = value_end.max(self.after_colon(&entry.key)?);
            return Ok((from..self.next_line(end), String::new()));
        }
        let at = body
            .entries
            .iter()
            .position(|other| other.key.range == entry.key.range)
            .unwrap_or(0);
        let own_end = entry.value.range.end.max(self.after_colon(&entry.key)?);
        // With the comma that separates it from a neighbour; there always is one, the wanted entry.
        let range = match (
            body.entries.get(at + 1),
            at.checked_sub(1)
                .and_then(|before| body.entries.get(before)),
        ) {
            (Some(next), _) => entry.key.range.start..next.key.range.start,
            (None, Some(before)) => before.value.range.end..own_end,
            (None, None) => entry.key.range.start..own_end,
        };
        Ok((range, String::new()))
    }

    fn insertion(&self, body: &Body<'_>, key: &str, value: &str) -> Result<(Range<usize>, String)> {
        let value = scalar(value, ScalarStyle::Plain);
        if self.is_flow(body.node) {
            return Ok(match body.entries.last() {
                Some(last) => {
                    let end = last.value.range.end.max(self.after_colon(&last.key)?);
                    (end..end, format!(", {key}: {value}"))
                }
                None => {
                    let inside = body.node.range.start + 1;
                    (inside..inside, format!("{key}: {value}"))
                }
            });
        }
        let line_end = if self.text.contains("\r\n") {
            "\r\n"
        } else {
            "\n"
        };
        match body.entries.first() {
            Some(first) => {
                let from = self.line_start(&first.key)?;
                let indent = self
                    .text
                    .get(from..first.key.range.start)
                    .unwrap_or_default();
                Ok((from..from, format!("{indent}{key}: {value}{line_end}")))
            }
            None => {
                let end = self.next_line(self.after_colon(body.key)?);
                let missing_end = if self
                    .text
                    .get(..end)
                    .is_some_and(|text| text.ends_with('\n'))
                {
                    ""
                } else {
                    line_end
                };
                let indent = " ".repeat(body.key.column + 2);
                Ok((
                    end..end,
                    format!("{missing_end}{indent}{key}: {value}{line_end}"),
                ))
            }
        }
    }

    /// Where the line of a block key begins; only blanks may stand before the key.
    fn line_start(&self, key: &Node) -> Result<usize> {
        let before = self.text.get(..key.range.start).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        if before
            .get(start..)
            .is_none_or(|indent| indent.chars().any(|character| character != ' '))
        {
            bail!("an entry that does not begin its line cannot be edited safely");
        }
        Ok(start)
    }

    fn next_line(&self, from: usize) -> usize {
        self.text
            .get(from..)
            .and_then(|rest| rest.find('\n'))
            .map_or(self.text.len(), |at| from + at + 1)
    }

    fn after_colon(&self, key: &Node) -> Result<usize> {
        let rest = self.text.get(key.range.end..).unwrap_or_default();
        let trimmed = rest.trim_start_matches(' ');
        if !trimmed.starts_with(':') {
            bail!("a key without its colon cannot be edited safely");
        }
        Ok(key.range.end + (rest.len() - trimmed.len()) + 1)
    }
}

fn blanks(text: &str, from: usize) -> usize {
    text.get(from..)
        .map_or(0, |rest| rest.len() - rest.trim_start_matches(' ').len())
}

/// `value` in the quotes that were there; in double quotes where a plain scalar could be misread.
fn scalar(value: &str, style: ScalarStyle) -> String {
    let simple = value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/+=._-".contains(&byte));
    let begins_well = value.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/');
    match style {
        ScalarStyle::SingleQuoted if simple => format!("'{value}'"),
        ScalarStyle::DoubleQuoted if simple => format!("\"{value}\""),
        _ if simple && begins_well => value.to_owned(),
        // A JSON string is a YAML double-quoted scalar.
        _ => Value::String(value.to_owned()).to_string(),
    }
}

/// How deep a kubeconfig may nest; real ones need about 6.
const MAX_DEPTH: usize = 64;

enum Frame {
    List {
        node: Node,
        items: Vec<Node>,
    },
    Map {
        node: Node,
        entries: Vec<Entry>,
        key: Option<Node>,
    },
}

fn build(text: &str) -> Result<Node> {
    // The parser counts characters.
    let offsets: Vec<usize> = text
        .char_indices()
        .map(|(at, _)| at)
        .chain([text.len()])
        .collect();
    let byte = |index: usize| offsets.get(index).copied().unwrap_or(text.len());
    let mut stack: Vec<Frame> = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| anyhow!("the file is not valid YAML: {}", error.info()))?;
        let node = |special: bool, kind: Kind| Node {
            range: byte(span.start.index())..byte(span.end.index()),
            column: span.start.col(),
            special,
            kind,
        };
        let done = match event {
            Event::Scalar(value, style, anchor, tag) => node(
                anchor != 0 || tag.is_some(),
                Kind::Scalar {
                    text: value.into_owned(),
                    style,
                },
            ),
            Event::Alias(_) => node(true, Kind::Alias),
            Event::SequenceStart(anchor, tag) => {
                let node = node(anchor != 0 || tag.is_some(), Kind::List(Vec::new()));
                stack.push(Frame::List {
                    node,
                    items: Vec::new(),
                });
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                let node = node(anchor != 0 || tag.is_some(), Kind::Map(Vec::new()));
                stack.push(Frame::Map {
                    node,
                    entries: Vec::new(),
                    key: None,
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let mut node = match stack
                    .pop()
                    .context("the file's structure could not be followed")?
                {
                    Frame::List { node, items } => Node {
                        kind: Kind::List(items),
                        ..node
                    },
                    Frame::Map { node, entries, .. } => Node {
                        kind: Kind::Map(entries),
                        ..node
                    },
                };
                node.range.end = byte(span.end.index());
                node
            }
            _ => continue,
        };
        if stack.len() > MAX_DEPTH {
            bail!("the YAML nests too deeply");
        }
        match stack.last_mut() {
            None => root = Some(done),
            Some(Frame::List { items, .. }) => items.push(done),
            Some(Frame::Map { entries, key, .. }) => match key.take() {
                None => *key = Some(done),
                Some(key) => entries.push(Entry { key, value: done }),
            },
        }
    }
    root.context("the file is empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "# head
apiVersion: v1
users:
# the admin
- name: other
  user:
    token: abc
- name: admin # me
  user:
    client-certificate-data: T0xE  # cert
    client-key-data: 'S0VZ'
    as: somebody
contexts: []
";

    fn inline(text: &str) -> Result<String> {
        let new = replace_credentials(
            text.as_bytes(),
            "admin",
            NewMaterial::Inline(b"new certificate"),
            NewMaterial::Inline(b"new key"),
        )?;
        Ok(String::from_utf8(new).unwrap())
    }

    fn files(text: &str) -> Result<String> {
        let path = GuestPath::new("/var/lib/kubelet/pki/kubelet-client-current.pem");
        let new = replace_credentials(
            text.as_bytes(),
            "admin",
            NewMaterial::File(&path),
            NewMaterial::File(&path),
        )?;
        Ok(String::from_utf8(new).unwrap())
    }

    #[test]
    fn replaces_only_the_values() {
        let expected = BLOCK
            .replace("T0xE", "bmV3IGNlcnRpZmljYXRl")
            .replace("S0VZ", "bmV3IGtleQ==");
        assert_eq!(inline(BLOCK).unwrap(), expected);
        let crlf = BLOCK.replace('\n', "\r\n");
        assert_eq!(inline(&crlf).unwrap(), expected.replace('\n', "\r\n"));
    }

    #[test]
    fn replaces_the_ca_of_one_cluster() {
        let text = "clusters:\n- cluster: {server: https://a, certificate-authority-data: T0xE}\n  \
            name: a\n\
            - name: b # mine\n  cluster:\n    certificate-authority-data: \"T0xE\"\n";
        let new = |name| {
            replace_authority(text.as_bytes(), name, b"new")
                .map(|new| String::from_utf8(new).unwrap())
        };
        assert_eq!(new("a").unwrap(), text.replacen("T0xE", "bmV3", 1));
        assert_eq!(new("b").unwrap(), text.replace("\"T0xE\"", "\"bmV3\""));
        assert!(new("c").is_err());
    }

    #[test]
    fn turns_data_into_files_in_place() {
        let new = files(BLOCK).unwrap();
        let path = "/var/lib/kubelet/pki/kubelet-client-current.pem";
        let expected = BLOCK
            .replace(
                "client-certificate-data: T0xE",
                &format!("client-certificate: {path}"),
            )
            .replace("client-key-data: 'S0VZ'", &format!("client-key: '{path}'"));
        assert_eq!(new, expected);
        // Both forms given: the data goes.
        let both = BLOCK.replace(
            "    as:",
            "    client-certificate: /old\n    client-key: /old.key\n    as:",
        );
        let new = files(&both).unwrap();
        assert!(!new.contains("-data"), "{new}");
        assert!(new.contains("    as: somebody\n"), "{new}");
        assert_eq!(
            files(&both.replace('\n', "\r\n")).unwrap(),
            new.replace('\n', "\r\n")
        );
    }

    #[test]
    fn edits_flow_style() {
        let flow = "{users: [{name: admin, user: {client-certificate-data: QQ==, client-key-data: \
            \"QQ==\"}}], x: 1}\n";
        assert_eq!(
            inline(flow).unwrap(),
            "{users: [{name: admin, user: {client-certificate-data: bmV3IGNlcnRpZmljYXRl, \
             client-key-data: \"bmV3IGtleQ==\"}}], x: 1}\n"
        );
        let json = "{\"users\":[{\"name\":\"admin\",\"user\":{\"client-certificate-data\":\"QQ==\",\
            \"client-certificate\":\"/a\",\"client-key\":\"/b\"}}]}";
        let new = files(json).unwrap();
        assert!(!new.contains("-data"), "{new}");
        serde_json::from_str::<Value>(&new).unwrap();
        let json = "{\"users\":[{\"name\":\"admin\",\"user\":{\"client-certificate-data\":\"QQ==\",\
            \"client-key-data\":\"QQ==\"}}]}";
        serde_json::from_str::<Value>(&files(json).unwrap()).unwrap();
        assert!(
            files("{users: [{name: admin, user: {}}]}")
                .unwrap()
                .contains("client-key: /var")
        );
        assert!(
            files("{users: [{name: admin, user: {token: x}}]}")
                .unwrap()
                .contains("token: x, client-certificate")
        );
    }

    #[test]
    fn adds_what_is_missing() {
        let without = BLOCK.replace("    client-key-data: 'S0VZ'\n", "");
        let new = inline(&without).unwrap();
        assert!(new.contains("    client-key-data: bmV3IGtleQ==\n"), "{new}");
        let empty_value = BLOCK.replace("T0xE  # cert", "  # cert");
        assert!(
            inline(&empty_value)
                .unwrap()
                .contains("client-certificate-data: bmV3IGNlcnRpZmljYXRl")
        );
        let nothing = "users:\n- name: admin\n  user:\ncontexts: []\n";
        let new = inline(nothing).unwrap();
        assert!(new.contains("  user:\n    client-"), "{new}");
        let at_the_end = "users:\n- name: admin\n  user:";
        assert!(inline(at_the_end).unwrap().contains("  user:\n    client-"));
    }

    #[test]
    fn replaces_block_scalars_and_non_ascii_surroundings() {
        let text = BLOCK
            .replace("T0xE  # cert", "|\n      T0\n      xE")
            .replace("# head", "# Zertifikat für Übung ☂");
        let new = inline(&text).unwrap();
        assert!(
            new.contains(
                "client-certificate-data: bmV3IGNlcnRpZmljYXRl\n    \
                 client-key-data: 'bmV3IGtleQ=='\n"
            ),
            "{new}"
        );
        assert!(new.starts_with("# Zertifikat für Übung ☂\n"));
    }

    /// Whatever the bytes, there is an answer, and an edited file means what was asked for (checked
    /// inside).
    #[test]
    fn survives_damaged_files() {
        let flow = "{users: [{name: admin, user: {client-certificate-data: QQ==, 'client-key': \
            \"/b\"}}], x: [1, {y: 2}]}\n";
        let mut edited = 0;
        for text in [BLOCK, flow] {
            for (at, _) in text.char_indices() {
                let mut attempts = vec![text.get(..at).unwrap_or_default().to_owned()];
                for new in [
                    "", "\t", "\n", "{", "]", ":", "\"", "&", "*", "|", "#", "\u{0}", "\u{feff}",
                    "é", "- ", "? ", "\r",
                ] {
                    let mut damaged = text.to_owned();
                    damaged.replace_range(at..=at, new);
                    attempts.push(damaged);
                }
                for damaged in attempts {
                    edited += usize::from(inline(&damaged).is_ok())
                        + usize::from(files(&damaged).is_ok());
                }
            }
        }
        assert!(edited > 500, "{edited}");
    }

    #[test]
    fn a_byte_order_mark_goes() {
        assert_eq!(
            inline(&format!("\u{feff}{BLOCK}")).unwrap(),
            inline(BLOCK).unwrap()
        );
    }

    #[test]
    fn refuses_what_cannot_be_edited_safely() {
        for (text, why) in [
            (BLOCK.replace("T0xE", "&a T0xE"), "anchor"),
            (
                format!("x: &a T0xE\n{}", BLOCK.replace("T0xE", "*a")),
                "alias",
            ),
            (BLOCK.replace("T0xE", "!!str T0xE"), "tag"),
            (BLOCK.replace("    client-key", "\tclient-key"), "tab"),
            (
                BLOCK.replace("    as: somebody", "    <<: {token: x}"),
                "merge key",
            ),
            (BLOCK.replace("name: other", "name: admin"), "two users"),
            (BLOCK.replace("name: admin", "name: root"), "no such user"),
            (format!("{BLOCK}---\nx: 1\n"), "two documents"),
            ("hello".to_owned(), "no mapping"),
            (String::new(), "empty"),
            ("users: {".to_owned(), "not YAML"),
        ] {
            assert!(inline(&text).is_err(), "{why}: {text}");
        }
    }
}
