//! What the sources say of the keys of a TOML file: structs and enums that serde reads, with their
//! doc comments, defaults and older spellings.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use syn::{Attribute, Expr, Fields, ImplItem, Lit, Stmt, Type};

/// A type that serde reads from TOML.
#[derive(Clone)]
pub(crate) struct Item {
    pub doc: String,
    pub keys: Keys,
    /// The whole struct is `#[serde(default)]`.
    pub has_default: bool,
    pub name: String,
    pub file: usize,
}

impl Item {
    /// Returns the doc comment without the table's name; nothing where it says no more.
    pub fn doc_beyond(&self, table: &str) -> String {
        let name = format!("{table}]`");
        match self.doc.split_once(&name).filter(|(before, _)| before.starts_with("`[")) {
            None => self.doc.clone(),
            Some((_, rest)) => {
                let rest = rest.trim_start_matches([':', '.', ',', ' ']);
                let mut chars = rest.chars();
                chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
            }
        }
    }
}

#[derive(Clone)]
pub(crate) enum Keys {
    Fields(Vec<Field>),
    /// The key that names the variant; name, doc comment and keys of each variant.
    Tagged(String, Vec<(String, String, Vec<Field>)>),
}

/// A key of a table.
#[derive(Clone)]
pub(crate) struct Field {
    pub name: String,
    pub doc: String,
    pub kind: Kind,
    /// The function of `#[serde(default = "…")]`; empty for a bare `default`.
    pub default: Option<String>,
    pub aliases: Vec<String>,
}

/// A field's type without `Option` and `Vec`.
#[derive(Clone)]
pub(crate) struct Kind {
    pub name: String,
    pub optional: bool,
    pub list: bool,
}

/// The parsed files below a folder.
pub(crate) struct Sources {
    files: Vec<syn::File>,
    /// Index of the file and of the item in it.
    types: HashMap<String, (usize, usize)>,
    constants: HashMap<String, String>,
}

impl Sources {
    pub fn open(folder: &Path) -> Self {
        let mut paths = Vec::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.extension().is_some_and(|e| e == "rs") => paths.push(path),
                    false => {}
                }
            }
        }
        // The run file's own structs win over others of the same name.
        paths.sort_by_key(|p| (!p.components().any(|c| c.as_os_str() == "config"), p.clone()));
        let files: Vec<syn::File> = paths
            .iter()
            .map(|p| {
                syn::parse_file(&fs::read_to_string(p).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", p.display()))
            })
            .collect();
        let (mut types, mut constants) = (HashMap::new(), HashMap::new());
        for (f, file) in files.iter().enumerate() {
            for (n, item) in file.items.iter().enumerate() {
                match item {
                    syn::Item::Struct(item) if read_by_serde(&item.attrs) => {
                        types.entry(item.ident.to_string()).or_insert((f, n));
                    }
                    syn::Item::Enum(item) => {
                        types.entry(item.ident.to_string()).or_insert((f, n));
                    }
                    syn::Item::Const(item) => {
                        constants.entry(item.ident.to_string()).or_insert(literal(&item.expr));
                    }
                    syn::Item::Impl(item) => {
                        for item in &item.items {
                            if let ImplItem::Const(item) = item {
                                constants.entry(item.ident.to_string()).or_insert(literal(&item.expr));
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        Self { files, types, constants }
    }

    /// Returns the struct or the tagged enum of this name.
    pub fn find(&self, name: &str) -> Option<Item> {
        let &(file, index) = self.types.get(name)?;
        let (attributes, keys) = match &self.files[file].items[index] {
            syn::Item::Struct(item) => (&item.attrs, Keys::Fields(self.fields(&item.fields))),
            syn::Item::Enum(item) => {
                let tag = serde(&item.attrs).into_iter().find(|(k, _)| k == "tag")?.1;
                let style = rename_all(&item.attrs);
                let variants = item
                    .variants
                    .iter()
                    .map(|v| (renamed(&v.ident.to_string(), &style), self.doc(&v.attrs), self.fields(&v.fields)));
                (&item.attrs, Keys::Tagged(tag, variants.collect()))
            }
            _ => return None,
        };
        // A struct made from another one fills its defaults in there.
        let has_default = serde(attributes).iter().any(|(k, _)| matches!(k.as_str(), "default" | "from" | "try_from"));
        Some(Item { doc: self.doc(attributes), keys, has_default, name: name.into(), file })
    }

    /// Returns whether the type is a table of its own rather than a value.
    pub fn is_table(&self, kind: &Kind) -> bool {
        self.find(&kind.name).is_some_and(|item| !matches!(&item.keys, Keys::Fields(f) if f.is_empty()))
    }

    /// Returns the type in TOML's words, and an enum's values with their doc comments.
    pub fn describe(&self, kind: &Kind) -> (String, String) {
        let simple = match kind.name.as_str() {
            "String" | "PathBuf" => "string",
            "bool" => "boolean",
            "Table" | "BTreeMap" | "HashMap" => "table",
            "f32" | "f64" => "number",
            "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" | "NonZeroUsize" => "integer",
            _ => "",
        };
        let (mut name, mut values) = (if simple.is_empty() { "string" } else { simple }.to_string(), String::new());
        if let Some(&(file, index)) = self.types.get(&kind.name)
            && let syn::Item::Enum(item) = &self.files[file].items[index]
        {
            // What parses itself may spell its variants in any way, but a number.
            let numbers = item.variants.iter().any(|v| !v.fields.is_empty());
            let by_itself = !read_by_serde(&item.attrs) && !numbers;
            let through_text = by_itself || serde(&item.attrs).iter().any(|(k, _)| k == "try_from");
            let style = style(&item.attrs);
            let mut each = Vec::new();
            for variant in item.variants.iter().filter(|_| !through_text) {
                let doc = self.doc(&variant.attrs);
                let value = match variant.fields.is_empty() {
                    true => format!("`{}`", renamed(&variant.ident.to_string(), &style)),
                    false => {
                        name = "string or number".into();
                        "a number".into()
                    }
                };
                each.push(if doc.is_empty() {
                    format!("{value}.")
                } else {
                    format!("{value}: {}.", doc.trim_end_matches('.'))
                });
            }
            values = each.join(" ");
        }
        (if kind.list { format!("list of {name}s") } else { name }, values)
    }

    /// Returns what `#[serde(default)]` gives a field, in backticks: the literal that its function
    /// returns, or the type's own default.
    pub fn default_of(&self, item: &Item, field: &Field) -> String {
        let Some(function) = field.default.as_deref().filter(|f| !f.is_empty()) else {
            return if field.default.is_some() { self.default_of_type(&field.kind) } else { String::new() };
        };
        let name = function.rsplit("::").next().unwrap_or(function);
        let files = std::iter::once(&self.files[item.file]).chain(&self.files);
        let mut functions = files.flat_map(|f| &f.items).filter_map(|i| match i {
            syn::Item::Fn(f) if f.sig.ident == name => Some(f),
            _ => None,
        });
        let value = functions.next().and_then(|f| match f.block.stmts.last() {
            Some(Stmt::Expr(expr, None)) => Some(self.constant(literal(expr))),
            _ => None,
        });
        match value {
            Some(value) if value.ends_with("::MAX") => "no limit".into(),
            Some(value) if !value.is_empty() => format!("`{value}`"),
            _ => String::new(),
        }
    }

    fn default_of_type(&self, kind: &Kind) -> String {
        if kind.optional || kind.list {
            return String::new();
        }
        let value = match self.describe(kind).0.as_str() {
            "boolean" => Some("false".to_string()),
            "integer" => Some("0".to_string()),
            _ => self.types.get(&kind.name).and_then(|&(file, index)| match &self.files[file].items[index] {
                syn::Item::Enum(item) => {
                    let default =
                        item.variants.iter().find(|v| v.attrs.iter().any(|a| a.path().is_ident("default")))?;
                    Some(format!("\"{}\"", renamed(&default.ident.to_string(), &style(&item.attrs))))
                }
                _ => None,
            }),
        };
        value.map(|value| format!("`{value}`")).unwrap_or_default()
    }

    /// Returns the literal that the type's `impl Default` gives a field, in backticks.
    pub fn default_in_impl(&self, item: &Item, field: &str) -> String {
        let mut value = String::new();
        for i in &self.files[item.file].items {
            let syn::Item::Impl(i) = i else { continue };
            let of_type = matches!(&*i.self_ty, Type::Path(p) if p.path.is_ident(&item.name));
            let default = i.trait_.as_ref().is_some_and(|(_, path, _)| path.is_ident("Default"));
            let functions = i.items.iter().filter_map(|f| if let ImplItem::Fn(f) = f { Some(f) } else { None });
            for function in functions.filter(|_| of_type && default) {
                if let Some(Stmt::Expr(Expr::Struct(s), None)) = function.block.stmts.last() {
                    for f in &s.fields {
                        if matches!(&f.member, syn::Member::Named(name) if name == field) {
                            value = self.constant(literal(&f.expr));
                        }
                    }
                }
            }
        }
        if value.is_empty() || value == "None" { String::new() } else { format!("`{value}`") }
    }

    fn constant(&self, value: String) -> String {
        self.constants.get(value.rsplit("::").next().unwrap_or(&value)).cloned().unwrap_or(value)
    }

    fn fields(&self, fields: &Fields) -> Vec<Field> {
        let kept = fields
            .iter()
            .filter(|f| !serde(&f.attrs).iter().any(|(k, _)| k.starts_with("skip") && k != "skip_serializing_if"));
        kept.filter_map(|f| {
            let attributes = serde(&f.attrs);
            let value = |key: &str| attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
            let name = f.ident.as_ref()?.to_string();
            Some(Field {
                name: value("rename").unwrap_or_else(|| name.trim_start_matches("r#").into()),
                doc: self.doc(&f.attrs),
                kind: kind(&f.ty),
                default: value("default"),
                aliases: attributes.iter().filter(|(k, _)| k == "alias").map(|(_, v)| v.clone()).collect(),
            })
        })
        .collect()
    }

    /// Returns a doc comment as one paragraph of Markdown without rustdoc's links.
    fn doc(&self, attributes: &[Attribute]) -> String {
        let lines = attributes.iter().filter_map(|a| match &a.meta {
            syn::Meta::NameValue(v) if v.path.is_ident("doc") => match &v.value {
                Expr::Lit(syn::ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        });
        let lines: Vec<String> = lines.collect();
        let paragraph = lines.iter().map(|l| l.trim()).take_while(|l| !l.starts_with('#'));
        let text = paragraph.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        let mut parts = text.split("[`");
        let mut out = parts.next().unwrap_or_default().to_string();
        for part in parts {
            let Some((path, rest)) = part.split_once("`]") else {
                out += "[`";
                out += part;
                continue;
            };
            let last = path.rsplit("::").next().unwrap_or(path);
            match self.constants.get(last).filter(|value| !value.is_empty()) {
                Some(value) => out += value,
                None => out += &format!("`{last}`"),
            }
            out += rest;
        }
        out
    }
}

fn read_by_serde(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| {
        let mut found = false;
        let _ = a.path().is_ident("derive").then(|| {
            a.parse_nested_meta(|m| {
                found |= m.path.segments.last().is_some_and(|s| s.ident == "Deserialize");
                Ok(())
            })
        });
        found
    })
}

/// Returns the keys and values of `#[serde(…)]`.
fn serde(attributes: &[Attribute]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            let value = match meta.value() {
                Ok(value) => unquoted(literal(&value.parse::<Expr>()?)),
                Err(_) => String::new(),
            };
            found.push((key, value));
            Ok(())
        });
    }
    found
}

fn rename_all(attributes: &[Attribute]) -> String {
    serde(attributes).into_iter().find(|(k, _)| k == "rename_all").map(|(_, v)| v).unwrap_or_default()
}

/// Returns how an enum's values are spelt; one that parses itself is taken for lower case.
fn style(attributes: &[Attribute]) -> String {
    match read_by_serde(attributes) {
        true => rename_all(attributes),
        false => "lowercase".into(),
    }
}

fn renamed(name: &str, style: &str) -> String {
    match style {
        "lowercase" => name.to_lowercase(),
        "snake_case" | "kebab-case" => {
            let mut out = String::new();
            for (n, c) in name.chars().enumerate() {
                if c.is_uppercase() && n > 0 {
                    out.push(if style == "snake_case" { '_' } else { '-' });
                }
                out.extend(c.to_lowercase());
            }
            out
        }
        _ => name.to_string(),
    }
}

fn kind(ty: &Type) -> Kind {
    let mut kind = Kind { name: String::new(), optional: false, list: false };
    let mut ty = ty;
    while let Type::Path(path) = ty {
        let Some(last) = path.path.segments.last() else { break };
        kind.name = last.ident.to_string();
        match kind.name.as_str() {
            "Option" => kind.optional = true,
            "Vec" => kind.list = true,
            "Box" => {}
            _ => break,
        }
        let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { break };
        let Some(syn::GenericArgument::Type(inner)) = arguments.args.first() else { break };
        ty = inner;
    }
    kind
}

fn unquoted(text: String) -> String {
    text.trim_matches('"').to_string()
}

/// Returns a literal as TOML writes it, or the last two names of a path; else nothing.
fn literal(expr: &Expr) -> String {
    match expr {
        Expr::Lit(lit) => match &lit.lit {
            Lit::Str(s) => format!("\"{}\"", s.value()),
            Lit::Int(n) => n.base10_digits().to_string(),
            Lit::Float(x) => x.base10_digits().to_string(),
            Lit::Bool(b) => b.value.to_string(),
            _ => String::new(),
        },
        Expr::Path(path) => {
            let names: Vec<String> = path.path.segments.iter().map(|s| s.ident.to_string()).collect();
            match names.as_slice() {
                [.., ty, name] if name.chars().any(char::is_lowercase) && ty != "Self" => {
                    format!("\"{}\"", name.to_lowercase())
                }
                [.., ty, name] => format!("{ty}::{name}"),
                [name] => name.clone(),
                [] => String::new(),
            }
        }
        Expr::MethodCall(call) => literal(&call.receiver),
        _ => String::new(),
    }
}
