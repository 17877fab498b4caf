//! docs/config.schema.json is what the types are.

use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::config::Config;

/// Set to write the file anew.
const UPDATE: &str = "FLASHPAN_UPDATE_SCHEMA";

/// Descriptions are documentation comments: links to other types mean nothing in
/// a schema, and their lines are as long as those of the source.
fn plain(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`");
                *text = text
                    .replace("\n\n", "\0")
                    .replace('\n', " ")
                    .replace('\0', "\n\n");
            }
            fields.values_mut().for_each(plain);
        }
        Value::Array(entries) => entries.iter_mut().for_each(plain),
        _ => {}
    }
}

/// Fields that are read as empty when they are absent, so that
/// [`Config::validate`] reports them with all other mistakes.
const REQUIRED: [(&str, &[&str]); 4] = [
    ("DirectMount", &["host_path"]),
    ("DiskMount", &["guest_mount", "host_path"]),
    ("HostIpMapping", &["host", "ip"]),
    ("Secret", &["hosts", "value"]),
];

fn mark_required(schema: &mut Value) {
    for (name, fields) in REQUIRED {
        let definition = &mut schema["$defs"][name];
        for field in fields {
            let property = definition["properties"][field].as_object_mut();
            property.unwrap().remove("default");
        }
        definition["required"] = fields.into();
    }
}

fn schema() -> String {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    plain(&mut schema);
    mark_required(&mut schema);
    let mut text = serde_json::to_string_pretty(&schema).unwrap();
    text.push('\n');
    text
}

#[test]
fn the_published_schema_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.schema.json");
    let schema = schema();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap();
    let published: Value = serde_json::from_str(&published).unwrap();
    assert!(
        // Not the texts: a feature of serde_json that other crates may ask for
        // changes the order of fields.
        published == serde_json::from_str::<Value>(&schema).unwrap(),
        "docs/config.schema.json is not what the types are; write it anew with \
         `{UPDATE}=1 cargo test -p flashpan schema`"
    );
}

/// docs/config.md.
const GUIDE: &str = include_str!("../../../docs/config.md");

/// The names of all fields below a part of a schema.
fn fields(value: &Value, names: &mut Vec<String>) {
    if let Some(properties) = value.get("properties").and_then(Value::as_object) {
        names.extend(properties.keys().cloned());
        properties.values().for_each(|value| fields(value, names));
    }
    if let Some(definitions) = value.get("$defs").and_then(Value::as_object) {
        definitions.values().for_each(|value| fields(value, names));
    }
}

#[test]
fn the_guide_describes_every_field() {
    let mut names = Vec::new();
    fields(&serde_json::from_str(&schema()).unwrap(), &mut names);
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        let described = [
            format!("`{name}`"),
            format!("].{name}`"),
            format!(".{name}`"),
        ];
        let in_braces = [format!("{{{name}, "), format!(", {name}}}")];
        let mut texts = described.iter().chain(&in_braces);
        assert!(
            texts.any(|text| GUIDE.contains(text)),
            "docs/config.md says nothing of {name}"
        );
    }
}

#[test]
fn the_guide_tells_every_code_of_a_text() {
    use super::code::ErrorCode;
    for code in ErrorCode::ALL {
        let name = code.as_str();
        let told = GUIDE.contains(&format!("`{name}`")) || name.starts_with("guest_path_");
        assert!(told, "docs/config.md says nothing of {name}");
    }
}

#[test]
fn the_example_of_the_guide_is_valid() {
    let example = GUIDE.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let parsed = Config::from_toml(example).unwrap();
    assert_eq!(parsed.warnings, []);
    assert_eq!(parsed.config.warnings(), []);
    parsed.config.validate_request().unwrap();
}
