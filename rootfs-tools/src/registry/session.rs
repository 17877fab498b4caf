//! Requests about one image to one of the servers that may have it.

use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};

use super::Inner;
use super::auth;
use super::credentials::Found;
use super::endpoint::Endpoint;
use super::error::{Error, Failure};
use super::transport::{Answer, Ask};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) inner: &'a Inner,
    pub(super) endpoint: &'a Endpoint,
    /// The image, as people write it.
    pub(super) image: &'a str,
}

/// What to ask for.
#[derive(Debug, Clone)]
pub(super) struct Wish<'a> {
    pub(super) url: Url,
    /// Its name in messages.
    pub(super) what: &'a str,
    pub(super) accept: Option<&'static str>,
    /// The first byte that is wanted.
    pub(super) from: u64,
}

impl Session<'_> {
    /// One attempt at getting something; the answer is 200, 206 or 416. Proves
    /// who we are if the registry wants to know.
    pub(super) async fn get(&self, wish: &Wish<'_>) -> Result<Answer, Failure> {
        let slot = self.inner.grants.slot(self.endpoint);
        // Not the lock itself: others go on while this one is answered.
        let used = slot.lock().await.header();
        let mut answer = self.ask(wish, used.clone()).await?;
        if answer.response.status() == StatusCode::UNAUTHORIZED && answer.direct {
            let mut grant = slot.lock().await;
            let header = match grant.header() {
                // Somebody else has got one meanwhile.
                Some(newer) if used.as_ref() != Some(&newer) => Some(newer),
                _ => {
                    *grant = auth::grant(
                        &self.inner.transport,
                        &self.inner.options,
                        self.endpoint,
                        self.image,
                        answer.response.headers(),
                    )
                    .await?;
                    grant.fresh()
                }
            };
            drop(grant);
            answer = self.ask(wish, header).await?;
        }
        match answer.response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(answer)
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.refused(&answer).await),
            _ => Err(self.inner.transport.status(answer, wish.what).await),
        }
    }

    async fn ask(
        &self,
        wish: &Wish<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let mut ask = Ask::new(wish.url.clone(), wish.what);
        ask.accept = wish.accept;
        ask.from = wish.from;
        ask.authorization = authorization;
        self.inner.transport.ask(&ask).await
    }

    async fn refused(&self, answer: &Answer) -> Failure {
        // To say the right thing: is it that we have none, or not the right ones?
        let options = &self.inner.options;
        let Endpoint {
            registry,
            repository,
            ..
        } = self.endpoint;
        let found: Found = options
            .credentials
            .find(registry, repository, options.deadlines.helper)
            .await;
        auth::refused(self.endpoint, self.image, &answer.host, &found).into()
    }

    /// The error that `status` is if 404 means that an image is not there.
    pub(super) fn no_such_image(&self, failure: Failure) -> Failure {
        match failure.error {
            Error::Status { status: 404, .. } => Error::NoSuchImage {
                image: self.image.to_owned(),
                host: self.endpoint.registry.clone(),
            }
            .into(),
            error => Failure { error, ..failure },
        }
    }
}
