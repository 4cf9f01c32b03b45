//! Single columns of Parquet files, of all types that hold ids, texts, numbers or times.
//!
//! Columns that are not selected are never read: they may be of any type.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use polars_arrow::array::{
    Array, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, StructArray, Utf8ViewArray,
};
use polars_arrow::datatypes::{ArrowDataType, Field, TimeUnit};
use polars_buffer::Buffer;
use polars_parquet::read::schema::parquet_to_arrow_schema;
use polars_parquet::read::{
    BasicDecompressor, FileMetadata, PageReader, RowGroupMetadata, column_iter_to_arrays, read_metadata,
};
use rayon::prelude::*;

use super::delimited::missing_column;
use super::fields::shorten;
use super::input::Input;
use super::read_context::ReadContext;
use super::source_file::SourceFile;
use crate::{Context, Error, Result};

/// Number of rows passed on at a time.
const BATCH: usize = 1 << 16;

/// A Parquet file whose schema has been read.
pub(super) struct ParquetFile {
    file: SourceFile,
    metadata: FileMetadata,
    /// The names of the columns; one may be there twice.
    pub(super) names: Vec<String>,
}

/// A column to read: a field of the file, or one in it.
pub(super) struct ColumnPath {
    /// The file's field, with nothing in it but the way to the column.
    field: Field,
    /// The names of the fields, from the file's field down.
    path: Vec<String>,
    /// The kind of the column's values.
    pub(super) kind: Kind,
}

/// The kind of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Whole,
    Float,
    /// A time, with so many units in a millisecond.
    Time {
        per_millisecond: i64,
    },
    /// Days since 1970.
    Days,
    /// Nothing but nulls.
    Null,
}

/// The values of a column.
enum Values {
    Text(Utf8ViewArray),
    Binary(BinaryViewArray),
    Whole(Vec<Option<i128>>),
    Float(Vec<Option<f64>>),
    /// Unix time, milliseconds.
    Date(Vec<Option<i64>>),
    Null,
}

/// A value of a column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Text(&'a str),
    /// Bytes that are no text.
    Binary,
    Whole(i128),
    Float(f64),
    /// Unix time, milliseconds.
    Date(i64),
}

/// Rows of the selected columns, in their order.
pub(super) struct Rows<'a> {
    columns: &'a [Option<Values>],
    first: usize,
    /// Number of rows.
    pub(super) len: usize,
}

impl Rows<'_> {
    /// Returns the value of a row, from 0, in a column; null in a column that was not selected.
    pub(super) fn get(&self, column: usize, row: usize) -> Value<'_> {
        let row = self.first + row;
        let Some(Some(values)) = self.columns.get(column) else { return Value::Null };
        let value = match values {
            Values::Null => None,
            Values::Text(array) => array.get(row).map(Value::Text),
            Values::Binary(array) => {
                array.get(row).map(|bytes| std::str::from_utf8(bytes).map_or(Value::Binary, Value::Text))
            }
            Values::Whole(values) => values.get(row).copied().flatten().map(Value::Whole),
            Values::Float(values) => values.get(row).copied().flatten().map(Value::Float),
            Values::Date(values) => values.get(row).copied().flatten().map(Value::Date),
        };
        value.unwrap_or(Value::Null)
    }
}

/// Counts the rows of a file.
pub(super) fn count_rows(file: &SourceFile) -> Result<u64> {
    Ok(ParquetFile::open(file)?.rows())
}

impl ParquetFile {
    pub(super) fn open(file: &SourceFile) -> Result<Self> {
        let mut reader = BufReader::new(file.open()?);
        let metadata = catch_panic(file, || read_metadata(&mut reader))?;
        let names = metadata.schema().fields().iter().map(|field| field.name().to_string()).collect();
        Ok(Self { file: file.clone(), metadata, names })
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> u64 {
        self.metadata.num_rows as u64
    }

    /// Returns whether there is a column of this name, or one in another (`reviewer.user`).
    pub(super) fn has(&self, name: &str) -> bool {
        matches!(self.column(name), Ok(_) | Err(Some(_)))
    }

    /// Finds a column by its name, or by the names of the fields down to it (`reviewer.user`).
    ///
    /// # Errors
    /// A name that is not there, or twice, and a type that holds neither ids, nor texts, numbers or
    /// times.
    pub(super) fn find(&self, name: &str) -> Result<ColumnPath> {
        self.column(name).map_err(|error| match error {
            None => missing_column(&self.file, name, &self.names),
            Some(what) => Error::failed(format!("{}: column `{}` {what}", self.file, shorten(name))),
        })
    }

    /// Finds a column as [`ParquetFile::find`] does; the error is `None` if the name is not there.
    fn column(&self, name: &str) -> std::result::Result<ColumnPath, Option<String>> {
        let count = |wanted: &str| self.names.iter().filter(|name| *name == wanted).count();
        let path: Vec<String> =
            if count(name) > 0 { vec![name.to_string()] } else { name.split('.').map(str::to_string).collect() };
        let [root, inner @ ..] = path.as_slice() else { return Err(None) };
        match count(root) {
            0 => return Err(None),
            1 => {}
            _ => return Err(Some("is there twice".into())),
        }
        let fields: Vec<_> =
            self.metadata.schema().fields().iter().filter(|field| field.name() == root.as_str()).cloned().collect();
        let schema = parquet_to_arrow_schema(&fields);
        let Some(field) = schema.iter_values().next() else {
            return Err(Some("is of a type that cannot be read".into()));
        };
        let mut leaf = field.clone();
        for name in inner {
            leaf = match leaf.dtype {
                ArrowDataType::Struct(fields) => {
                    fields.into_iter().find(|field| field.name.as_str() == name).ok_or(None)?
                }
                _ => return Err(None),
            };
        }
        let dtype = readable(&leaf.dtype);
        let Some(kind) = kind(&dtype) else {
            return Err(Some(format!("is {:?}, but should be text, numbers or times", leaf.dtype)));
        };
        let nullable = |field: &Field, dtype| Field::new(field.name.clone(), dtype, field.is_nullable);
        let mut pruned = nullable(&leaf, dtype);
        for depth in (0..inner.len()).rev() {
            let mut above = field.clone();
            for name in inner.get(..depth).unwrap_or_default() {
                if let ArrowDataType::Struct(fields) = above.dtype {
                    above = fields.into_iter().find(|field| field.name.as_str() == name).ok_or(None)?;
                }
            }
            pruned = nullable(&above, ArrowDataType::Struct(vec![pruned]));
        }
        Ok(ColumnPath { field: pruned, path, kind })
    }

    /// Reads columns of all rows, in batches. `None` stands for a column that is not there.
    pub(super) fn read(
        &self,
        columns: &[Option<ColumnPath>],
        context: &mut ReadContext,
        mut each: impl FnMut(&mut ReadContext, &Rows) -> Result<()> + Send,
    ) -> Result<()> {
        let digest = Input::open(&self.file, context)?.finish()?;
        self.read_rows(columns, |rows| each(context, rows).map(|()| true))?;
        context.finish_file(&self.file, self.rows(), digest);
        Ok(())
    }

    /// Passes batches of rows to `each` until it returns false.
    pub(super) fn read_rows(
        &self,
        columns: &[Option<ColumnPath>],
        mut each: impl FnMut(&Rows) -> Result<bool> + Send,
    ) -> Result<()> {
        let mut groups = self.metadata.row_groups.iter();
        let mut next = groups.next().map(|group| self.decode(group, columns)).transpose()?;
        while let Some((columns_now, len)) = next.take() {
            // While one group of rows is passed on, the next is decoded.
            let (going, decoded) = rayon::join(
                || -> Result<bool> {
                    for first in (0..len).step_by(BATCH) {
                        let rows = Rows { columns: &columns_now, first, len: BATCH.min(len - first) };
                        if !each(&rows)? {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                },
                || groups.next().map(|group| self.decode(group, columns)).transpose(),
            );
            if !going? {
                return Ok(());
            }
            next = decoded?;
        }
        Ok(())
    }

    /// Reads the columns of a row group.
    fn decode(&self, group: &RowGroupMetadata, columns: &[Option<ColumnPath>]) -> Result<(Vec<Option<Values>>, usize)> {
        let one = |column: &Option<ColumnPath>| match column {
            None => Ok(None),
            Some(column) => self.decode_column(group, column).map(Some),
        };
        let values = columns.par_iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok((values, group.num_rows()))
    }

    fn decode_column(&self, group: &RowGroupMetadata, column: &ColumnPath) -> Result<Values> {
        let mut file = self.file.open()?;
        let size = self.file.size()?;
        let mut chunks = Vec::new();
        let mut types = Vec::new();
        for metadata in group.parquet_columns() {
            let descriptor = metadata.descriptor();
            let path = &descriptor.path_in_schema;
            if path.len() < column.path.len() || !path.iter().zip(&column.path).all(|(a, b)| a.as_str() == b) {
                continue;
            }
            let bytes = read_range(&mut file, metadata.byte_range(), size)
                .map_err(|what| Error::failed(format!("{}: {what}; is the file cut or damaged?", self.file)))?;
            let pages = PageReader::new(Cursor::new(Buffer::from(bytes)), metadata, vec![], usize::MAX);
            chunks.push(BasicDecompressor::new(pages, vec![]));
            types.push(&descriptor.descriptor.primitive_type);
        }
        let (arrays, _) = catch_panic(&self.file, || column_iter_to_arrays(chunks, types, column.field.clone(), None))?;
        let array = match arrays.as_slice() {
            [array] => array.clone(),
            arrays => {
                let arrays: Vec<&dyn Array> = arrays.iter().map(|array| array.as_ref()).collect();
                polars_arrow::compute::concatenate::concatenate(&arrays).context(&self.file)?
            }
        };
        let leaf = leaf(array, column.path.len() - 1);
        let values = leaf.and_then(|array| values(array.as_ref(), column.kind));
        let name = column.path.join(".");
        let values = values
            .ok_or_else(|| Error::failed(format!("{}: column `{}` cannot be read", self.file, shorten(&name))))?;
        Ok(values)
    }
}

/// Runs polars' reader, which panics on some damaged files.
fn catch_panic<T, E: std::fmt::Display + std::any::Any>(
    file: &SourceFile,
    run: impl FnOnce() -> std::result::Result<T, E>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.context(file),
        Err(_) => Err(Error::failed(format!("{file}: it cannot be read as Parquet; is the file cut or damaged?"))),
    }
}

fn read_range(file: &mut File, range: std::ops::Range<u64>, size: u64) -> std::result::Result<Vec<u8>, String> {
    let length = range.end.checked_sub(range.start).filter(|_| range.end <= size).ok_or("a column leaves the file")?;
    file.seek(SeekFrom::Start(range.start)).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let count = file.take(length).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if count as u64 == length { Ok(bytes) } else { Err("a column ends early".into()) }
}

/// Returns the type to read a column as.
fn readable(dtype: &ArrowDataType) -> ArrowDataType {
    use ArrowDataType as A;
    match dtype {
        A::Utf8 | A::LargeUtf8 => A::Utf8View,
        A::Binary | A::LargeBinary => A::BinaryView,
        A::Float16 => A::FixedSizeBinary(2),
        other => other.clone(),
    }
}

fn kind(dtype: &ArrowDataType) -> Option<Kind> {
    use ArrowDataType as A;
    Some(match dtype {
        A::Utf8View | A::BinaryView => Kind::Text,
        A::Boolean | A::Int8 | A::Int16 | A::Int32 | A::Int64 => Kind::Whole,
        A::UInt8 | A::UInt16 | A::UInt32 | A::UInt64 | A::Decimal(_, 0) => Kind::Whole,
        // Two bytes are a half-precision number.
        A::FixedSizeBinary(2) | A::Float32 | A::Float64 | A::Decimal(..) => Kind::Float,
        A::Timestamp(TimeUnit::Second, _) => Kind::Time { per_millisecond: 0 },
        A::Timestamp(TimeUnit::Millisecond, _) | A::Date64 => Kind::Time { per_millisecond: 1 },
        A::Timestamp(TimeUnit::Microsecond, _) => Kind::Time { per_millisecond: 1000 },
        A::Timestamp(TimeUnit::Nanosecond, _) => Kind::Time { per_millisecond: 1_000_000 },
        A::Date32 => Kind::Days,
        A::Null => Kind::Null,
        _ => return None,
    })
}

/// Returns the only column at a depth of structs; nulls above it are its own.
fn leaf(mut array: Box<dyn Array>, depth: usize) -> Option<Box<dyn Array>> {
    for _ in 0..depth {
        let outer = array.as_any().downcast_ref::<StructArray>()?;
        let inner = outer.values().first()?.clone();
        let validity = polars_arrow::compute::utils::combine_validities_and(outer.validity(), inner.validity());
        array = inner.with_validity(validity);
    }
    Some(array)
}

/// Returns a column's values; `None` if the array is not of the kind.
fn values(array: &dyn Array, kind: Kind) -> Option<Values> {
    let any = array.as_any();
    macro_rules! numbers {
        ($($native:ty),*) => {
            [$(any.downcast_ref::<PrimitiveArray<$native>>().map(|array| {
                array.iter().map(|value| value.map(|value| i128::from(*value))).collect::<Vec<Option<i128>>>()
            })),*].into_iter().flatten().next()
        };
    }
    let whole = || {
        if let Some(array) = any.downcast_ref::<BooleanArray>() {
            return Some(array.iter().map(|value| value.map(i128::from)).collect());
        }
        numbers!(i8, i16, i32, i64, u8, u16, u32, u64, i128)
    };
    Some(match kind {
        Kind::Null => Values::Null,
        Kind::Text => match any.downcast_ref::<Utf8ViewArray>() {
            Some(array) => Values::Text(array.clone()),
            None => Values::Binary(any.downcast_ref::<BinaryViewArray>()?.clone()),
        },
        Kind::Whole => Values::Whole(whole()?),
        Kind::Float => Values::Float(floats(array)?),
        Kind::Time { per_millisecond } => {
            let scaled = |value: i128| match i64::try_from(value).ok()? {
                seconds if per_millisecond == 0 => seconds.checked_mul(1000),
                value => Some(value.div_euclid(per_millisecond)),
            };
            Values::Date(whole()?.into_iter().map(|value| value.and_then(scaled)).collect())
        }
        Kind::Days => {
            let scaled = |days: i128| i64::try_from(days).ok()?.checked_mul(86_400_000);
            Values::Date(whole()?.into_iter().map(|value| value.and_then(scaled)).collect())
        }
    })
}

fn floats(array: &dyn Array) -> Option<Vec<Option<f64>>> {
    let any = array.as_any();
    if let Some(array) = any.downcast_ref::<PrimitiveArray<f64>>() {
        return Some(array.iter().map(|value| value.copied()).collect());
    }
    if let Some(array) = any.downcast_ref::<PrimitiveArray<f32>>() {
        return Some(array.iter().map(|value| value.map(|value| f64::from(*value))).collect());
    }
    if let Some(array) = any.downcast_ref::<PrimitiveArray<i128>>()
        && let ArrowDataType::Decimal(_, scale) = array.dtype()
    {
        let scale = u32::try_from(*scale).ok()?;
        // By its digits, so that the nearest number comes out.
        let value = |value: i128| format!("{value}e-{scale}").parse().ok();
        return Some(array.iter().map(|number| number.and_then(|number| value(*number))).collect());
    }
    let halves = any.downcast_ref::<FixedSizeBinaryArray>()?;
    let value = |bytes: &[u8]| Some(f64::from(half::f16::from_le_bytes(bytes.try_into().ok()?)));
    Some(halves.iter().map(|bytes| bytes.and_then(value)).collect())
}
