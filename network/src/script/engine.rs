//! The language, within its limits, and what a script may use of the host.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flashpan_protocol::network::Protocol;
use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicFnPackage, BasicIteratorPackage, BasicMathPackage,
    BasicStringPackage, LogicPackage, MoreStringPackage, Package,
};
use rhai::{
    AST, Array, CallFnOptions, Dynamic, Engine, EvalAltResult, INT, ImmutableString,
    NativeCallContext, Position, Scope,
};

use super::bounded;
use super::shown::plain;
use super::{CONNECTION, Call, Connection, REQUEST, Refusal, Request, ScriptError};
use crate::host::Host;
use crate::policy::Pattern;
use crate::policy::path::PathPattern;

/// Most steps of one call: each expression, call and turn of a loop is one.
const MAX_OPERATIONS: u64 = 100_000;

/// How long one call may take, whatever its steps cost: whoever waits for it is told within
/// a second.
const WITHIN: Duration = Duration::from_millis(500);

/// How many steps pass between two looks at the clock.
const LOOK_EVERY: u64 = 32;

/// Most functions that are called by one another.
const MAX_CALLS: usize = 16;

/// Most expressions in one another: outside of functions, and in them.
const MAX_DEPTH: (usize, usize) = (64, 64);

const MAX_FUNCTIONS: usize = 64;
const MAX_VARIABLES: usize = 64;

/// The longest text, and all texts of a list together, in bytes: a head of a request.
///
/// With the limits above and below a script that has all that it can have, in each of its
/// variables at each depth, has less than 100 MiB.
const MAX_STRING: usize = 64 * 1024;

/// Most entries of a list, and of all lists in it.
const MAX_ARRAY: usize = 1024;

/// The longest reason that is told, in characters.
const MAX_REASON: usize = 200;

/// What of the language there is no use for: what runs text and what prints; and maps and
/// functions with arguments in them, the sizes of which nothing counts.
const DISABLED: [&str; 5] = ["eval", "print", "debug", "#{", "curry"];

thread_local! {
    /// Until when the call that runs on this thread may take; without, nothing runs.
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };

    /// What ended the call that runs on this thread, whatever became of that in the script.
    static STOPPED: RefCell<Option<Stop>> = const { RefCell::new(None) };
}

/// Why a call ends that the script did not end.
#[derive(Debug, Clone)]
enum Stop {
    /// The script denies it, in this line.
    Deny(String, Option<usize>),
    /// It took too long.
    Late,
    /// It is outside of functions.
    Outside,
}

impl From<Stop> for Box<EvalAltResult> {
    /// What nothing in a script can catch.
    fn from(stop: Stop) -> Self {
        EvalAltResult::ErrorTerminated(Dynamic::from(stop), Position::NONE).into()
    }
}

/// A script that compiled, and what runs it.
pub(super) struct Program {
    engine: Engine,
    ast: AST,
    pub(super) judges_requests: bool,
    pub(super) judges_connections: bool,
}

impl Program {
    pub(super) fn new(source: &str) -> Result<Self, ScriptError> {
        let engine = engine();
        let ast = engine.compile(source).map_err(|error| {
            let at = error.position();
            ScriptError::Syntax {
                line: at.line().unwrap_or_default(),
                column: at.position().unwrap_or_default(),
                why: told(&error.err_type().to_string()),
            }
        })?;
        let judges = |name: &'static str| {
            let mut functions = ast.iter_functions().filter(|of| of.name == name);
            let counts: Vec<usize> = functions.by_ref().map(|of| of.params.len()).collect();
            match counts.as_slice() {
                [] => Ok(false),
                counts if counts.contains(&1) => Ok(true),
                [first, ..] => Err(ScriptError::Parameters(name, *first)),
            }
        };
        let (judges_requests, judges_connections) = (judges(REQUEST)?, judges(CONNECTION)?);
        // What is outside of functions stops at its first step.
        if let Err(error) = engine.run_ast(&ast) {
            let at = error.unwrap_inner().position();
            return Err(ScriptError::Statement {
                line: at.line().unwrap_or_default(),
                column: at.position().unwrap_or_default(),
            });
        }
        if !judges_requests && !judges_connections {
            return Err(ScriptError::Judges);
        }
        Ok(Self {
            engine,
            ast,
            judges_requests,
            judges_connections,
        })
    }

    /// Calls the function that is for this.
    pub(super) fn run(&self, call: Call) -> Result<(), Refusal> {
        let (name, shown) = match call {
            Call::Request(request) => (REQUEST, Dynamic::from(request)),
            Call::Connection(connection) => (CONNECTION, Dynamic::from(connection)),
        };
        UNTIL.set(Instant::now().checked_add(WITHIN));
        STOPPED.set(None);
        let options = CallFnOptions::new().eval_ast(false);
        let mut scope = Scope::new();
        let called: Result<Dynamic, _> =
            (self.engine).call_fn_with_options(options, &mut scope, &self.ast, name, (shown,));
        UNTIL.set(None);
        let called = match STOPPED.take() {
            Some(stop) => Err(stop.into()),
            None => called,
        };
        let answer = match called {
            Ok(answer) => answer,
            Err(error) => return Err(refusal(name, &error)),
        };
        match answer.as_bool() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal {
                is_denial: true,
                why: format!("policy_script: {name}() returned false"),
            }),
            Err(_) if answer.is_unit() => Ok(()),
            Err(kind) => {
                let why = format!("{name}() returned neither true nor false but {kind}");
                Err(Refusal::failed(&why))
            }
        }
    }
}

/// What an error of a call of this function means.
fn refusal(name: &str, error: &EvalAltResult) -> Refusal {
    let inner = error.unwrap_inner();
    let mut line = inner.position().line();
    let stop = match inner {
        EvalAltResult::ErrorTerminated(stop, _) => stop.clone().try_cast::<Stop>(),
        _ => None,
    };
    let is_denial = matches!(stop, Some(Stop::Deny(..)));
    let why = match (stop, inner) {
        (Some(Stop::Deny(reason, at)), _) => {
            line = at;
            reason
        }
        (Some(Stop::Late), _) => format!("{name}() took more than {} ms", WITHIN.as_millis()),
        (_, EvalAltResult::ErrorTooManyOperations(_)) => {
            format!("{name}() took more than {MAX_OPERATIONS} steps")
        }
        (_, EvalAltResult::ErrorStackOverflow(_)) => {
            format!("in {name}() more than {MAX_CALLS} functions called one another")
        }
        (_, EvalAltResult::ErrorDataTooLarge(what, _)) => format!("in {name}(): {what} too large"),
        (_, EvalAltResult::ErrorRuntime(value, _)) => format!("threw {value}"),
        (_, inner) => without_position(inner),
    };
    let why = match line {
        Some(line) => format!("policy_script:{line}: {}", told(&why)),
        None => format!("policy_script: {}", told(&why)),
    };
    Refusal { is_denial, why }
}

/// The text of an error; where it was is told before it.
fn without_position(error: &EvalAltResult) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (line ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

/// A text of a script's, or about one, that is told: one line that does no harm.
fn told(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).take(MAX_REASON).collect()
}

fn engine() -> Engine {
    // Without anything of the host: no files, no modules, no clock, no threads.
    let mut engine = Engine::new_raw();
    ArithmeticPackage::new().register_into_engine(&mut engine);
    LogicPackage::new().register_into_engine(&mut engine);
    BasicMathPackage::new().register_into_engine(&mut engine);
    BasicStringPackage::new().register_into_engine(&mut engine);
    MoreStringPackage::new().register_into_engine(&mut engine);
    BasicIteratorPackage::new().register_into_engine(&mut engine);
    BasicArrayPackage::new().register_into_engine(&mut engine);
    BasicFnPackage::new().register_into_engine(&mut engine);
    for word in DISABLED {
        engine.disable_symbol(word);
    }
    engine
        .set_max_operations(MAX_OPERATIONS)
        .set_max_call_levels(MAX_CALLS)
        .set_max_expr_depths(MAX_DEPTH.0, MAX_DEPTH.1)
        .set_max_functions(MAX_FUNCTIONS)
        .set_max_variables(MAX_VARIABLES)
        .set_max_string_size(MAX_STRING)
        .set_max_array_size(MAX_ARRAY)
        .set_strict_variables(true)
        .on_progress(|operations| {
            let stop = match UNTIL.get() {
                None => Stop::Outside,
                Some(until) if operations % LOOK_EVERY == 0 && Instant::now() >= until => {
                    Stop::Late
                }
                Some(_) => return None,
            };
            STOPPED.set(Some(stop.clone()));
            Some(Dynamic::from(stop))
        });
    engine.register_fn("deny", |context: NativeCallContext<'_>| {
        deny(&context, "no reason given")
    });
    engine.register_fn("deny", |context: NativeCallContext<'_>, reason: &str| {
        deny(&context, reason)
    });
    bounded::register(&mut engine, MAX_STRING);
    register_request(&mut engine);
    register_connection(&mut engine);
    engine
}

pub(super) type Called<T> = Result<T, Box<EvalAltResult>>;

/// Ends the call, wherever it is: a denial that only had to be returned could be forgotten.
fn deny(context: &NativeCallContext<'_>, reason: &str) -> Called<()> {
    // Of what nothing in a script can catch the language forgets where it was.
    let stop = Stop::Deny(told(reason), context.call_position().line());
    STOPPED.set(Some(stop.clone()));
    Err(stop.into())
}

fn wrong<T>(why: &impl ToString) -> Called<T> {
    Err(EvalAltResult::ErrorRuntime(why.to_string().into(), Position::NONE).into())
}

fn register_request(engine: &mut Engine) {
    engine
        .register_type_with_name::<Request>("Request")
        .register_get("scheme", |of: &mut Request| of.0.scheme.to_owned())
        .register_get("method", |of: &mut Request| of.0.method.clone())
        .register_get("host", |of: &mut Request| plain(&of.0.host))
        .register_get("port", |of: &mut Request| INT::from(of.0.port))
        .register_get("path", |of: &mut Request| of.0.path.clone())
        .register_get("query", |of: &mut Request| of.0.query.clone())
        .register_get("upgrade", |of: &mut Request| of.0.upgrade)
        .register_get("url", |of: &mut Request| of.0.to_string())
        .register_get("header_names", |of: &mut Request| {
            let names = of.0.headers.iter().map(|(name, _)| name.into());
            names.collect::<Array>()
        })
        .register_fn("header", |of: &mut Request, name: &str| {
            let is_it = |(of, _): &&(String, String)| of.eq_ignore_ascii_case(name);
            let found = of.0.headers.iter().find(is_it);
            found.map_or(Dynamic::UNIT, |(_, value)| value.into())
        })
        .register_fn("host_is", |of: &mut Request, pattern: &str| {
            host_is(Protocol::Tcp, &of.0.host, of.0.port, pattern)
        })
        .register_fn("path_is", |of: &mut Request, pattern: &str| {
            match pattern.parse::<PathPattern>() {
                Ok(pattern) => Ok(pattern.matches(&of.0.path)),
                Err(why) => wrong(&why),
            }
        });
}

fn register_connection(engine: &mut Engine) {
    engine
        .register_type_with_name::<Connection>("Connection")
        .register_get("protocol", |of: &mut Connection| -> ImmutableString {
            match of.protocol {
                Protocol::Tcp => "tcp".into(),
                Protocol::Udp => "udp".into(),
            }
        })
        .register_get("host", |of: &mut Connection| plain(&of.host))
        .register_get("port", |of: &mut Connection| INT::from(of.port))
        .register_get("address", |of: &mut Connection| {
            let address = of.address.as_ref().map(IpAddr::to_string);
            address.map_or(Dynamic::UNIT, Dynamic::from)
        })
        .register_fn("host_is", |of: &mut Connection, pattern: &str| {
            host_is(of.protocol, &of.host, of.port, pattern)
        })
        .register_fn(
            "address_is",
            |of: &mut Connection, pattern: &str| match of.address {
                Some(address) => host_is(of.protocol, &address.into(), of.port, pattern),
                None => Ok(false),
            },
        );
}

/// Whether a pattern means this host, by whichever protocol.
fn host_is(protocol: Protocol, host: &Host, port: u16, pattern: &str) -> Called<bool> {
    match pattern.parse::<Pattern>() {
        Ok(pattern) => Ok(pattern.denies(protocol, host, port)),
        Err(why) => wrong(&why),
    }
}
