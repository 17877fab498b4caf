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
    assert!(
        std::fs::read_to_string(&path).unwrap() == schema,
        "docs/config.schema.json is not what the types are; write it anew with \
         `{UPDATE}=1 cargo test -p flashpan schema`"
    );
}
