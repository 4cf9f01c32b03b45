//! Reads selected values of a JSON object, and skips the others.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Names, ROLES, Value};

/// An object of which the fields with these names are read; of equal keys the last one counts.
pub(super) struct Object<'c>(pub(super) Names<'c>);

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = [Value<'de>; ROLES];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = [Value<'de>; ROLES];

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut values = [const { Value::Missing }; ROLES];
        while let Some(wanted) = map.next_key_seed(Key(&self.0))? {
            match wanted {
                KeyUse::Nothing => {
                    map.next_value::<IgnoredAny>()?;
                }
                KeyUse::Value(roles) => {
                    let value = map.next_value_seed(AnyValue)?;
                    for (target, _) in values.iter_mut().zip(roles).filter(|(_, wanted)| *wanted) {
                        target.clone_from(&value);
                    }
                }
                KeyUse::Nested(names) => {
                    let inner = map.next_value_seed(NestedKeys(names))?;
                    for (target, value) in values.iter_mut().zip(inner) {
                        if !matches!(value, Value::Missing) {
                            *target = value;
                        }
                    }
                }
            }
        }
        Ok(values)
    }
}

/// Use of a key's value.
enum KeyUse<'c> {
    Nothing,
    /// The value goes to these columns.
    Value([bool; ROLES]),
    /// The value is an object, and the values of these of its keys are read.
    Nested(Names<'c>),
}

/// Visitor of a key: returns how its value is used.
struct Key<'a, 'c>(&'a Names<'c>);

impl<'de, 'c> DeserializeSeed<'de> for Key<'_, 'c> {
    type Value = KeyUse<'c>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<KeyUse<'c>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'c> Visitor<'_> for Key<'_, 'c> {
    type Value = KeyUse<'c>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> std::result::Result<KeyUse<'c>, E> {
        let wanted = self.0.map(|name| name == Some(key));
        if wanted.contains(&true) {
            return Ok(KeyUse::Value(wanted));
        }
        let inside = self.0.map(|name| name?.strip_prefix(key)?.strip_prefix('.'));
        Ok(if inside.iter().any(Option::is_some) { KeyUse::Nested(inside) } else { KeyUse::Nothing })
    }
}

/// Visitor of the values of an object's keys; they are missing in anything else.
struct NestedKeys<'c>(Names<'c>);

impl<'de> DeserializeSeed<'de> for NestedKeys<'_> {
    type Value = [Value<'de>; ROLES];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NestedKeys<'_> {
    type Value = [Value<'de>; ROLES];

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        Object(self.0).visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok([const { Value::Missing }; ROLES])
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Self::Value, E> {
        Ok([const { Value::Missing }; ROLES])
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Self::Value, E> {
        Ok([const { Value::Missing }; ROLES])
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Self::Value, E> {
        Ok([const { Value::Missing }; ROLES])
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Self::Value, E> {
        Ok([const { Value::Missing }; ROLES])
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Self::Value, E> {
        Ok([const { Value::Missing }; ROLES])
    }

    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok([const { Value::Missing }; ROLES])
    }
}

/// Visitor of any value. The objects by which MongoDB writes typed values (`{"$oid": …}`) are that
/// value.
struct AnyValue;

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Value::Text(text.to_string().into()))
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> std::result::Result<Self::Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Self::Value, A::Error> {
        let mut value = Value::Other;
        let first = entries.next_key::<Cow<'de, str>>()?;
        if let Some(key) = &first {
            value = if key.starts_with('$') {
                entries.next_value_seed(AnyValue)?
            } else {
                entries.next_value::<IgnoredAny>()?;
                Value::Other
            };
            if key == "$date" {
                value = value.into_date();
            }
        }
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            value = Value::Other;
        }
        Ok(value)
    }
}
