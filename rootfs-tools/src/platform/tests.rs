use super::*;

fn platform(text: &str) -> Platform {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn spellings_of_a_platform_are_one() {
    for (text, is) in [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/armhf", "linux/arm"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/v5", "linux/arm/v5"),
        ("windows/amd64", "windows/amd64"),
    ] {
        assert_eq!(platform(text).to_string(), is, "{text}");
    }
    assert_eq!(Platform::default(), platform("linux/amd64"));
}

#[test]
fn what_is_no_platform_is_refused() {
    for text in [
        "",
        "linux",
        "linux/",
        "/amd64",
        "a/b/c/d",
        "linux/am d64",
        "linux/amd64/",
    ] {
        let error = text.parse::<Platform>().unwrap_err().to_string();
        assert!(error.contains("OS/ARCHITECTURE"), "{error}");
    }
}

/// An index with these entries; their digests count up from 0.
fn index(entries: &[(&str, Option<&str>)]) -> ImageIndex {
    let entries = entries.iter().enumerate().map(|(n, (media_type, it))| {
        let platform = it.map(|text| {
            let parts: Vec<_> = text.split('/').collect();
            let variant = parts.get(2).map(|it| format!(r#","variant":"{it}""#));
            format!(
                r#","platform":{{"os":"{}","architecture":"{}"{}}}"#,
                parts[0],
                parts[1],
                variant.unwrap_or_default()
            )
        });
        format!(
            r#"{{"mediaType":"{media_type}","size":1,"digest":"sha256:{n:064}"{}}}"#,
            platform.unwrap_or_default()
        )
    });
    let entries: Vec<_> = entries.collect();
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    serde_json::from_str(&text).unwrap()
}

/// Which entry is selected.
fn selected(want: &str, entries: &[&str]) -> Result<usize, String> {
    let entries: Vec<_> = entries
        .iter()
        .map(|it| (OCI_MANIFEST, (!it.is_empty()).then_some(*it)))
        .collect();
    number(platform(want).select(&index(&entries)))
}

fn number(found: Result<&Descriptor, NoMatch>) -> Result<usize, String> {
    match found {
        Ok(entry) => Ok(entry.digest().digest().parse().unwrap()),
        Err(none) => {
            let names: Vec<_> = none.available.iter().map(ToString::to_string).collect();
            Err(names.join(" "))
        }
    }
}

#[test]
fn the_entry_for_the_platform_is_selected() {
    for (want, entries, is) in [
        (
            "linux/amd64",
            &["linux/arm64", "linux/amd64", "windows/amd64"][..],
            Ok(1),
        ),
        ("linux/arm64", &["linux/amd64", "linux/arm64/v8"], Ok(1)),
        // The first of equals.
        ("linux/amd64", &["linux/amd64", "linux/amd64"], Ok(0)),
        // Never more than the processor can do; else the most.
        (
            "linux/amd64",
            &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"],
            Ok(2),
        ),
        ("linux/amd64", &["linux/amd64/v3"], Err("linux/amd64/v3")),
        (
            "linux/amd64/v3",
            &["linux/amd64", "linux/amd64/v4", "linux/amd64/v2"],
            Ok(2),
        ),
        (
            "linux/arm",
            &["linux/arm/v5", "linux/arm/v6", "linux/arm64"],
            Ok(1),
        ),
        // Attestations are no images.
        (
            "linux/arm64",
            &["linux/amd64", "unknown/unknown"],
            Err("linux/amd64"),
        ),
        (
            "linux/amd64",
            &["linux/s390x", "linux/386", "linux/386"],
            Err("linux/386 linux/s390x"),
        ),
        // What says nothing is taken if there is nothing else.
        ("linux/amd64", &[""], Ok(0)),
        ("linux/amd64", &["", ""], Err("")),
        ("linux/amd64", &["", "linux/arm64"], Err("linux/arm64")),
        ("linux/amd64", &["", "linux/amd64"], Ok(1)),
        ("linux/amd64", &[], Err("")),
    ] {
        assert_eq!(
            selected(want, entries),
            is.map_err(str::to_owned),
            "{want} {entries:?}"
        );
    }
}

#[test]
fn what_goes_with_images_is_not_selected() {
    let other = "application/vnd.example.signature.v1+json";
    let index = index(&[
        (other, Some("linux/amd64")),
        (other, None),
        (DOCKER_MANIFEST, None),
    ]);
    assert_eq!(number(Platform::default().select(&index)), Ok(2));
}
