use super::*;

fn parse(text: &str) -> Requests {
    Requests::parse("test", text).unwrap()
}

#[test]
fn every_form_of_request_is_read() {
    let text = "# prose about CONFIG_A\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=n\n\
                CONFIG_D=0x1000\nCONFIG_E=\"a b # c\"\nCONFIG_F=-1\n";
    let requests = parse(text);
    let all: Vec<_> = requests
        .iter()
        .map(|r| format!("{}={}@{}", r.option, r.value, r.line))
        .collect();
    assert_eq!(
        all,
        [
            "A=y@3",
            "B=n@4",
            "C=n@5",
            "D=0x1000@6",
            "E=\"a b # c\"@7",
            "F=-1@8"
        ]
    );
}

#[test]
fn a_line_that_means_nothing_is_refused_with_its_place() {
    for bad in [
        "CONFIG_A",
        "CONFIG_=y",
        "CONFIG_A=y # why",
        "A=y",
        "CONFIG_A=\"open",
        "CONFIG_A=",
    ] {
        let error = Requests::parse("mine.config", &format!("\n{bad}\n")).unwrap_err();
        assert!(
            error.to_string().starts_with("mine.config, line 2: `"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn one_file_cannot_ask_for_two_values() {
    let error = Requests::parse("mine", "CONFIG_A=y\n\n# CONFIG_A is not set\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "mine: lines 1 and 3 ask for different values of CONFIG_A"
    );
    parse("CONFIG_A=y\nCONFIG_A=y\n");
}

#[test]
fn a_later_fragment_wins_and_is_named() {
    let mut requests = parse("CONFIG_A=y\nCONFIG_B=1\n");
    requests.merge(Requests::parse("later", "# CONFIG_A is not set\n").unwrap());
    assert_eq!(requests.to_config(), "# CONFIG_A is not set\nCONFIG_B=1\n");
    assert_eq!(requests.iter().next().unwrap().fragment, "later");
}

#[test]
fn the_digest_depends_on_requests_only() {
    let one = parse("CONFIG_A=y\nCONFIG_B=1\n");
    assert_eq!(
        one.digest(),
        parse("# why\nCONFIG_B=1\n\nCONFIG_A=y").digest()
    );
    assert_ne!(one.digest(), parse("CONFIG_A=y\nCONFIG_B=2\n").digest());
}

#[test]
fn a_resolved_configuration_answers_for_every_option() {
    let resolved =
        Resolved::parse("#\n# General\n#\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=3\n");
    assert_eq!(resolved.get("A"), Value::Is("y".into()));
    assert_eq!(resolved.get("B"), Value::No);
    assert_eq!(resolved.get("MISSING"), Value::No);
    assert_eq!(resolved.enabled(), 1);
    assert_eq!(
        resolved.iter().collect::<Vec<_>>(),
        [("A", "y"), ("C", "3")]
    );
}
