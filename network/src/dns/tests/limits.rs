//! How many questions leave the host.

use std::time::Instant;

use super::super::limits::{
    GLOB_NAMES_AT_ONCE, GLOB_NAMES_PER_MINUTE, MAX_GLOB_NAME, QUESTIONS_AT_ONCE,
    QUESTIONS_PER_SECOND,
};
use super::*;

#[tokio::test]
async fn questions_are_passed_on_within_limits() {
    let guest = Guest::with(Policy::open(), |_| {}).await;
    let began = Instant::now();
    let mut too_many = 0;
    for number in 0..QUESTIONS_AT_ONCE * 3 {
        let answer = guest.ask(&format!("n{number}.test."), RecordType::A).await;
        match answer.response_code {
            ResponseCode::NXDomain => {}
            ResponseCode::ServFail => {
                let text = "too many questions: ask again later".to_owned();
                assert_eq!(why(&answer), Some((0, text)));
                too_many += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(too_many > 0);
    let most = f64::from(QUESTIONS_AT_ONCE)
        + began.elapsed().as_secs_f64() * f64::from(QUESTIONS_PER_SECOND);
    let had = u32::try_from(guest.upstream.had().len()).unwrap();
    assert!(f64::from(had) <= most + 1.0, "{had} of {most}");
    assert!(had >= QUESTIONS_AT_ONCE);
}

#[tokio::test]
async fn a_glob_is_no_way_out_for_much() {
    let mut guest = Guest::new(&["*.wild.test", "exact.wild.test"]).await;
    let long = format!("{0}.{0}.wild.test", "a".repeat(MAX_GLOB_NAME / 2 - 1));
    let answer = guest.ask(&format!("{long}."), RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    assert_eq!(guest.told_code().await, Code::NotAllowed);
    assert_eq!(guest.upstream.had(), []);

    let began = Instant::now();
    let mut refused = 0;
    for number in 0..GLOB_NAMES_AT_ONCE * 2 {
        let answer = guest
            .ask(&format!("n{number}.wild.test."), RecordType::A)
            .await;
        if answer.response_code == ResponseCode::Refused {
            let hint = format!("host_not_allowed: allow it with --allow-host n{number}.wild.test");
            assert_eq!(why(&answer), Some((18, hint)));
            refused += 1;
        }
    }
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let most = f64::from(GLOB_NAMES_AT_ONCE) + minutes * f64::from(GLOB_NAMES_PER_MINUTE);
    let had = u32::try_from(guest.upstream.had().len()).unwrap();
    assert!(f64::from(had) <= most + 1.0, "{had} of {most}");
    assert_eq!(had + refused, GLOB_NAMES_AT_ONCE * 2);
    // What is named is not held up by that.
    guest.upstream.has("exact.wild.test", &[PUBLIC]);
    let answer = guest.ask("exact.wild.test.", RecordType::A).await;
    assert_eq!(answer.answers.len(), 1);
}
