//! Attempts of a guest to reach what it may not, one after the other in one VM.

pub mod addresses;
pub mod changes;
pub mod http;
pub mod names;
pub mod protocols;
pub mod secrets;
pub mod secure;
pub mod web;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use flashpan::api::{Config, SecretValue};
use flashpan::launch::{HostOptions, RootSource, TimeLimit, UpperSource};
use flashpan::{ExecOptions, Network, NetworkActivity, Privilege, Process, Sandbox, VmEventKind};
use flashpan_tests::fixtures;
use flashpan_tests::internet::{self, Internet};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::guest::PATIENCE;

/// What the guest makes attempts with.
const ATTACKER: &str = include_str!("attacker.py");

/// How long a refusal may take. It is to be there within a second; emulated CPUs that others
/// use as well take longer for the program that asks.
const REFUSED_WITHIN: f64 = 10.0;

/// What may be reached that shows that all else still works: a question and a connection.
const ALIVE: [&str; 3] = [
    "dns alive.allowed.test A",
    "dns alive.allowed.test AAAA",
    "tcp 93.184.216.99:7000",
];

/// Below this nothing is allowed. A question for such a name ends each attempt.
const END: &str = "end.test";

/// What has to be told of an attempt.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// None: whichever it is.
    pub scheme: &'static str,
    /// A part of the host, as it is told.
    pub host: &'static str,
    /// Why it was refused; `allowed` if it was not.
    pub code: &'static str,
}

/// That something was refused, or allowed.
pub const fn told(scheme: &'static str, host: &'static str, code: &'static str) -> Told {
    Told { scheme, host, code }
}

/// What the host does between two steps of the guest, which waits for it with `host()`.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// Allows a host.
    Allow(&'static str),
    /// Takes that back.
    Disallow(&'static str),
    /// Gives a secret another value.
    Set(&'static str, &'static str),
    /// Takes its value away.
    Revoke(&'static str),
    /// A value that no secret may have is refused, and not shown.
    Refuse(&'static str, &'static str),
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// What it is known by.
    pub id: &'static str,
    pub what: &'static str,
    /// In Python, with what `attacker.py` has; it says in `seen` what came of it.
    pub code: &'static str,
    /// What that has to be.
    pub seen: &'static str,
    /// What has to be among what is told.
    pub told: &'static [Told],
    /// All that anybody outside may see of it, and sees unless it is a question for a name;
    /// with `*` at its end what begins so.
    pub contacts: &'static [&'static str],
    /// It waits for what must not come, or for time to pass.
    pub waits: bool,
    /// What the host does meanwhile, one after the other.
    pub acts: &'static [Act],
}

/// Most attempts are like this.
pub const NONE: Attempt = Attempt {
    id: "",
    what: "",
    code: "",
    seen: "",
    told: &[],
    contacts: &[],
    waits: false,
    acts: &[],
};

/// What a guest may reach that makes attempts.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub network: Network,
    pub allow: &'static [&'static str],
    pub private: bool,
    /// What there is in the configuration of the network besides: secrets, who looks at
    /// requests.
    pub more: fn(&Internet) -> Value,
}

/// Nothing besides.
pub fn nothing(_: &Internet) -> Value {
    json!({})
}

/// What came of an attempt, as the guest says.
#[derive(Debug)]
struct Outcome {
    seen: String,
    took: f64,
    alive: bool,
    ended: String,
}

/// Makes attempts (those whose ids begin as one of `FLASHPAN_TEST_ATTEMPTS`, which has commas
/// between them, if that is set) in a guest that may reach so much, in an internet that `prepare` has made,
/// and shows them in a table.
///
/// # Panics
/// If one did not come out as it has to.
pub fn make(policy: Policy, prepare: fn(&mut Internet), attempts: &'static [&'static [Attempt]]) {
    internet::run(move |mut internet| {
        internet.name("alive.allowed.test", &[&["93.184.216.99"]]);
        internet.serve_tcp(7000);
        prepare(&mut internet);
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let made = in_a_guest(policy, &internet, attempts);
        let failed = runtime.unwrap().block_on(made);
        assert!(failed.is_empty(), "\n{}", failed.join("\n"));
    });
}

async fn in_a_guest(policy: Policy, internet: &Internet, attempts: &[&[Attempt]]) -> Vec<String> {
    let sandbox = boot(policy, internet).await;
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut all = sandbox.events().unwrap();
    tokio::spawn(async move {
        while let Some(event) = all.next().await {
            match event.kind {
                VmEventKind::Network(activity) => drop(sender.send(activity)),
                VmEventKind::Lost(count) => panic!("{count} events were lost"),
                _ => {}
            }
        }
    });
    let mut attacker = Attacker::start(&sandbox).await;
    row(["id", "attempt", "expected", "seen"]);
    let mut failed = Vec::new();
    let chosen = std::env::var("FLASHPAN_TEST_ATTEMPTS").unwrap_or_default();
    let is_chosen = |attempt: &&Attempt| chosen.split(',').any(|of| attempt.id.starts_with(of));
    let attempts = attempts.iter().copied().flatten().filter(is_chosen);
    for (number, attempt) in attempts.enumerate() {
        let mark = internet.mark();
        let end = format!("{number}.{END}");
        let outcome = attacker.attempt(&sandbox, attempt, &end).await;
        let told = all_told(&mut events, &end).await;
        let wrong = judge(attempt, &outcome, &told, internet, mark);
        let seen = wrong.first().unwrap_or(&outcome.seen);
        row([attempt.id, attempt.what, attempt.seen, seen]);
        let Attempt { id, what, .. } = attempt;
        failed.extend(wrong.iter().map(|why| format!("{id} {what}: {why}")));
    }
    sandbox.kill().await;
    failed
}

/// Writes a line of the table.
fn row(columns: [&str; 4]) {
    let cut = |text: &str, most: usize| match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    let [id, what, expected, seen] = columns;
    let seen = seen.lines().next().unwrap_or_default();
    let (expected, seen) = (cut(expected.trim_end(), 48), cut(seen, 300));
    // Past what the harness keeps back.
    let mut errors = std::io::stderr();
    writeln!(errors, "{id:<4} {what:<66} {expected:<49} {seen}").unwrap();
}

async fn boot(policy: Policy, internet: &Internet) -> Sandbox {
    let program = |name: &str| Some(fixtures::flashpan().with_file_name(name));
    let mut options = HostOptions::new(fixtures::kernel())
        .root(RootSource::Path(fixtures::debian()))
        .upper(UpperSource::Memory);
    options.vmm = program("flashpan-vmm");
    options.guest_init = program("flashpan-guest-init");
    options.boot_timeout = PATIENCE;
    options.time_limit = TimeLimit::Unlimited;
    options.network = policy.network;
    options.upstream_ca_files.extend(internet.authority());
    let mut network = json!({
        "allowed_hosts": policy.allow,
        "denied_hosts": [format!("*.{END}")],
        "block_private_ips": !policy.private,
        "dns_servers": [flashpan_tests::internet::NAME_SERVER],
    });
    if let (Value::Object(network), Value::Object(more)) = (&mut network, (policy.more)(internet)) {
        network.extend(more);
    }
    let config: Config = serde_json::from_value(json!({"network": network})).unwrap();
    Sandbox::create(config, options).await.unwrap()
}

/// What was told before the question that ends an attempt.
async fn all_told(
    events: &mut mpsc::UnboundedReceiver<Arc<NetworkActivity>>,
    end: &str,
) -> Vec<Arc<NetworkActivity>> {
    let mut told = Vec::new();
    loop {
        let event = timeout(PATIENCE, events.recv()).await;
        let event = event.expect("the end was not told in time").unwrap();
        if event.network.host == end {
            return told;
        }
        told.push(event);
    }
}

/// What is wrong about how an attempt came out.
fn judge(
    attempt: &Attempt,
    outcome: &Outcome,
    told: &[Arc<NetworkActivity>],
    internet: &Internet,
    mark: usize,
) -> Vec<String> {
    let mut wrong = Vec::new();
    if outcome.seen != attempt.seen {
        wrong.push(format!(
            "the guest saw {:?}, not {:?}",
            outcome.seen, attempt.seen
        ));
    }
    let is_known = |contact: &String| {
        let known = attempt.contacts.iter().chain(&ALIVE);
        let is_it = |known: &&str| match known.strip_suffix('*') {
            Some(first) => contact.starts_with(first),
            None => contact == known,
        };
        known.copied().any(|known| is_it(&known))
    };
    let mut surplus: BTreeSet<String> = internet.contacts(mark);
    // Answers to questions are kept for a while, and connections are not.
    let is_due = |contact: &&&str| !(contact.starts_with("dns ") || contact.ends_with('*'));
    for contact in attempt.contacts.iter().filter(is_due) {
        if !surplus.contains(*contact) {
            wrong.push(format!("outside was not seen {contact}"));
        }
    }
    surplus.retain(|contact| !is_known(contact));
    if !surplus.is_empty() {
        wrong.push(format!("outside was seen {surplus:?}"));
    }
    let is_question = |contact: &&str| contact.starts_with("dns ");
    if attempt.contacts.iter().all(is_question) && internet.has_seen(mark, b"c4n4ry") {
        wrong.push("what it sent was seen outside".to_owned());
    }
    let told_all = serde_json::to_string(&told.iter().map(AsRef::as_ref).collect::<Vec<_>>());
    let told_all = told_all.unwrap();
    for (number, value) in internet.values().iter().enumerate() {
        if internet.has_seen(mark, value.as_bytes()) {
            wrong.push(format!("value {number} was seen outside in the clear"));
        }
        if outcome.seen.contains(value) || told_all.contains(value) {
            wrong.push(format!("value {number} was told"));
        }
    }
    for expected in attempt.told {
        let is_it = |event: &Arc<NetworkActivity>| {
            (expected.scheme.is_empty() || event.scheme == expected.scheme)
                && event.network.host.contains(expected.host)
                && event.code.as_deref().unwrap_or("allowed") == expected.code
        };
        if !told.iter().any(is_it) {
            let line = |event: &Arc<NetworkActivity>| {
                format!("{} {} {:?}", event.scheme, event.network.host, event.code)
            };
            let lines: Vec<String> = told.iter().take(30).map(line).collect();
            wrong.push(format!("{expected:?} was not told, but {lines:?}"));
        }
    }
    if !attempt.waits && outcome.took > REFUSED_WITHIN {
        wrong.push(format!("it took {:.1} s", outcome.took));
    }
    if !outcome.alive {
        wrong.push("what is allowed did not work any more".to_owned());
    }
    if outcome.ended != "REFUSED host_denied" {
        wrong.push(format!("it did not end in order: {}", outcome.ended));
    }
    wrong
}

/// A program in the guest that makes attempts.
struct Attacker {
    program: Process,
    lines: Lines<BufReader<flashpan::Output>>,
}

impl Attacker {
    /// With all that a guest's root may do.
    async fn start(sandbox: &Sandbox) -> Self {
        let program = ExecOptions::argv(["python3", "-S", "-c", ATTACKER])
            .privilege(Privilege::privileged())
            .stdin(true);
        let mut program = sandbox.exec(program).await.unwrap();
        // Nothing of it waits for what it says besides.
        let mut errors = program.stderr.take().unwrap();
        tokio::spawn(async move {
            while let Some(chunk) = errors.next_chunk().await {
                std::io::stderr().write_all(&chunk).unwrap();
            }
        });
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        Self { program, lines }
    }

    async fn attempt(&mut self, sandbox: &Sandbox, attempt: &Attempt, end: &str) -> Outcome {
        self.say(&json!({"code": attempt.code, "end": end})).await;
        let mut answer = self.answer().await;
        let mut acts = attempt.acts.iter();
        while answer["host"] == true {
            let act = acts.next().expect("there is nothing left for the host");
            act.perform(sandbox).await;
            self.say(&json!({})).await;
            answer = self.answer().await;
        }
        Outcome {
            seen: answer["seen"].as_str().unwrap().to_owned(),
            took: answer["took"].as_f64().unwrap(),
            alive: answer["alive"].as_bool().unwrap(),
            ended: answer["ended"].as_str().unwrap().to_owned(),
        }
    }
    async fn say(&mut self, what: &Value) {
        let stdin = self.program.stdin.as_mut().unwrap();
        let line = format!("{what}\n");
        stdin.write_all(line.as_bytes()).await.unwrap();
    }

    async fn answer(&mut self) -> Value {
        let answer = timeout(Duration::from_secs(240), self.lines.next_line()).await;
        let answer = answer.expect("an attempt did not end").unwrap();
        let answer = answer.expect("the program that makes attempts has ended");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Act {
    async fn perform(self, sandbox: &Sandbox) {
        let value = |value: &str| SecretValue::new(value.to_owned());
        match self {
            Self::Allow(host) => drop(sandbox.allow_hosts([host]).await.unwrap()),
            Self::Disallow(host) => drop(sandbox.disallow_hosts([host]).await.unwrap()),
            Self::Set(name, to) => sandbox.set_secret(name, &value(to)).await.unwrap(),
            Self::Revoke(name) => sandbox.revoke_secret(name).await.unwrap(),
            Self::Refuse(name, to) => {
                let why = sandbox.set_secret(name, &value(to)).await.unwrap_err();
                let why = format!("{why} {why:?}");
                assert!(to.is_empty() || !why.contains(to), "{why}");
            }
        }
    }
}
