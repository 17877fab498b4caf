//! Functions of the language, in place of its own that do not keep to its limits: those that
//! make a text of any length before that is looked at, and those that compare by a function
//! and drop its errors, or panic if it contradicts itself.

use std::cmp::Ordering;

use rhai::{
    Array, Dynamic, Engine, EvalAltResult, FnPtr, ImmutableString, NativeCallContext, Position,
};

use super::engine::Called;

/// Puts them in their places.
pub(super) fn register(engine: &mut Engine, max_string: usize) {
    let replace = move |text: &mut ImmutableString, find: &str, with: &str| {
        *text = replaced(text, find, with, max_string)?.into();
        Ok(())
    };
    engine
        .register_fn(
            "replace",
            move |text: &mut ImmutableString, find: &str, with: &str| -> Called<()> {
                replace(text, find, with)
            },
        )
        .register_fn(
            "replace",
            move |text: &mut ImmutableString, find: &str, with: char| -> Called<()> {
                replace(text, find, with.encode_utf8(&mut [0; 4]))
            },
        )
        .register_fn(
            "replace",
            move |text: &mut ImmutableString, find: char, with: &str| -> Called<()> {
                replace(text, find.encode_utf8(&mut [0; 4]), with)
            },
        )
        .register_fn(
            "replace",
            move |text: &mut ImmutableString, find: char, with: char| -> Called<()> {
                replace(
                    text,
                    find.encode_utf8(&mut [0; 4]),
                    with.encode_utf8(&mut [0; 4]),
                )
            },
        );
    for name in ["sort", "sort_by"] {
        engine.register_fn(
            name,
            |context: NativeCallContext<'_>, list: &mut Array, by: FnPtr| -> Called<()> {
                *list = sorted(&context, std::mem::take(list), &by)?;
                Ok(())
            },
        );
    }
    for name in ["order", "order_by"] {
        engine.register_fn(
            name,
            |context: NativeCallContext<'_>, list: Array, by: FnPtr| -> Called<Array> {
                sorted(&context, list, &by)
            },
        );
    }
    engine.register_fn(
        "dedup",
        |context: NativeCallContext<'_>, list: &mut Array, by: FnPtr| -> Called<()> {
            let mut kept = Array::new();
            for item in std::mem::take(list) {
                let is_same = match kept.last() {
                    None => false,
                    Some(last) => {
                        let pair = [last.clone(), item.clone()];
                        answer(by.call_raw(&context, None, pair)?.as_bool())?
                    }
                };
                if !is_same {
                    kept.push(item);
                }
            }
            *list = kept;
            Ok(())
        },
    );
}

fn replaced(text: &str, find: &str, with: &str, most: usize) -> Called<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let found = text.matches(find).count();
    let added = with.len().checked_mul(found);
    let len = added.and_then(|added| {
        let left = text.len().checked_sub(find.len().checked_mul(found)?)?;
        left.checked_add(added)
    });
    match len {
        Some(len) if len <= most => Ok(text.replace(find, with)),
        _ => Err(
            EvalAltResult::ErrorDataTooLarge("Length of string".to_owned(), Position::NONE).into(),
        ),
    }
}

/// A list in the order that a function says: the sooner if it is less than zero, or true.
/// A function that contradicts itself gets some order.
fn sorted(context: &NativeCallContext<'_>, list: Array, by: &FnPtr) -> Called<Array> {
    let mut sorted = Array::with_capacity(list.len());
    for item in list {
        // Where it goes: after all that are not after it.
        let (mut from, mut to) = (0, sorted.len());
        while from < to {
            let middle = usize::midpoint(from, to);
            let Some(other) = sorted.get(middle) else {
                break;
            };
            match compared(context, by, &item, other)? {
                Ordering::Less => to = middle,
                Ordering::Equal | Ordering::Greater => from = middle.saturating_add(1),
            }
        }
        sorted.insert(from, item);
    }
    Ok(sorted)
}

fn compared(
    context: &NativeCallContext<'_>,
    by: &FnPtr,
    one: &Dynamic,
    other: &Dynamic,
) -> Called<Ordering> {
    let said = by.call_raw(context, None, [one.clone(), other.clone()])?;
    match said.as_int() {
        Ok(said) => Ok(said.cmp(&0)),
        Err(_) => match answer(said.as_bool())? {
            true => Ok(Ordering::Less),
            false => Ok(Ordering::Greater),
        },
    }
}

/// What a function says that compares.
fn answer(said: Result<bool, &str>) -> Called<bool> {
    said.map_err(|kind| {
        let why = format!("a function that compares returned {kind}");
        EvalAltResult::ErrorRuntime(why.into(), Position::NONE).into()
    })
}
