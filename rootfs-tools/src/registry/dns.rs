//! Names to addresses, without libc: a statically linked program cannot load
//! what libc resolves names with. `/etc/hosts` and `/etc/resolv.conf` are read.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Name, Resolve, Resolving};

/// A name that cannot be resolved.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", why.why)]
pub(super) struct Failure {
    pub(super) name: String,
    pub(super) why: Unknown,
}

/// Why.
#[derive(Debug, Clone)]
pub(super) struct Unknown {
    pub(super) why: String,
    /// The name does not exist; asking again will not help.
    pub(super) definite: bool,
}

/// Resolves names. The system's files are read at the first name.
#[derive(Clone, Default)]
pub(super) struct Resolver {
    state: Arc<OnceLock<Result<State, Unknown>>>,
}

struct State {
    resolver: TokioResolver,
    /// What is wrong with the system's files: then only `/etc/hosts` counts.
    /// There is no server to fall back to that the user has not chosen.
    unconfigured: Option<String>,
}

impl State {
    fn new() -> Result<Self, Unknown> {
        let (mut builder, unconfigured) = match TokioResolver::builder_tokio() {
            Ok(builder) => (builder, None),
            Err(error) => {
                let none = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
                let provider = TokioRuntimeProvider::default();
                let builder = TokioResolver::builder_with_config(none, provider);
                (builder, Some(format!("/etc/resolv.conf: {error}")))
            }
        };
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let resolver = builder.build().map_err(|error| Unknown {
            why: error.to_string(),
            definite: true,
        })?;
        Ok(Self {
            resolver,
            unconfigured,
        })
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unknown> {
        match self.resolver.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn explain(&self, error: &NetError) -> Unknown {
        if let Some(why) = &self.unconfigured {
            return Unknown {
                why: why.clone(),
                definite: true,
            };
        }
        if error.is_nx_domain() {
            return Unknown {
                why: "the name does not exist; check the spelling".to_owned(),
                definite: true,
            };
        }
        if error.is_no_records_found() {
            return Unknown {
                why: "the name has no addresses".to_owned(),
                definite: true,
            };
        }
        Unknown {
            why: format!("{error}; is the name server of /etc/resolv.conf reachable?"),
            definite: false,
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let state = self.state.clone();
        Box::pin(async move {
            let found = match state.get_or_init(State::new) {
                Ok(state) => state.resolve(name.as_str()).await,
                Err(why) => Err(why.clone()),
            };
            let found = found.map_err(|why| Failure {
                name: name.as_str().to_owned(),
                why,
            })?;
            // Port 0: that of the URL.
            let addresses = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}
