//! Rows of Parquet files, by polars' streaming engine in batches.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use polars::prelude::{
    ArrowDataType, DataFrame, DataType, Engine, Expr, Float64Chunked, Int64Chunked, LazyFrame, ParquetReader,
    PlRefPath, PlanCallback, PolarsResult, ScanArgsParquet, SerReader, StringChunked, TimeUnit, col,
};

use super::{Block, Cell, Columns, Input, ReadContext, Row, Table, Unit};
use crate::{Context, Error, Result};

/// Rows of a batch.
const BATCH: usize = 1 << 16;

/// The names of a file's columns and its rows. An error if a column asked for is of no fit type.
pub(super) fn columns(path: &Path, asked: &Columns) -> Result<(Vec<String>, u64)> {
    let place = path.display();
    let mut reader = ParquetReader::new(File::open(path).context(&place)?);
    let schema = reader.schema().context(&place)?;
    let mut names = Vec::new();
    for (name, field) in schema.iter() {
        let is = |asked: &Option<String>| asked.as_deref() == Some(name.as_str());
        let dtype = &field.dtype;
        let (fits, wanted) = if is(&asked.user) || is(&asked.item) {
            (text(dtype) || whole(dtype), "text or whole numbers (32 or 64 bit)")
        } else if is(&asked.time) {
            (text(dtype) || number(dtype) || date(dtype), "times: numbers, dates or text")
        } else if is(&asked.rating) {
            (text(dtype) || number(dtype), "numbers")
        } else if is(&asked.title) || is(&asked.text) {
            (text(dtype), "text")
        } else {
            (readable(dtype), "of a type that can be read; write the file without it")
        };
        if !fits {
            return Err(Error::failed(format!("{place}: column `{name}` is {dtype:?}, but should be {wanted}")));
        }
        names.push(name.to_string());
    }
    Ok((names, reader.num_rows().context(&place)? as u64))
}

fn text(dtype: &ArrowDataType) -> bool {
    match dtype {
        ArrowDataType::Utf8 | ArrowDataType::LargeUtf8 | ArrowDataType::Utf8View => true,
        ArrowDataType::Dictionary(_, values, _) => text(values),
        _ => false,
    }
}

fn whole(dtype: &ArrowDataType) -> bool {
    use ArrowDataType::{Int8, Int16, Int32, Int64, UInt32, UInt64};
    matches!(dtype, Int8 | Int16 | Int32 | Int64 | UInt32 | UInt64)
}

fn number(dtype: &ArrowDataType) -> bool {
    whole(dtype) || matches!(dtype, ArrowDataType::Float32 | ArrowDataType::Float64)
}

fn date(dtype: &ArrowDataType) -> bool {
    matches!(dtype, ArrowDataType::Timestamp(..) | ArrowDataType::Date32 | ArrowDataType::Date64)
}

/// Can polars name the type, as built here? Else it panics, even if the column is not asked for.
fn readable(dtype: &ArrowDataType) -> bool {
    use ArrowDataType as A;
    match dtype {
        A::Null | A::Boolean | A::UInt8 | A::UInt16 | A::Binary | A::LargeBinary | A::BinaryView => true,
        A::FixedSizeBinary(_) | A::Duration(_) | A::Time32(_) | A::Time64(_) => true,
        A::List(field) | A::LargeList(field) | A::Map(field, _) => readable(&field.dtype),
        A::Struct(fields) => fields.iter().all(|field| readable(&field.dtype)),
        A::Dictionary(_, values, _) => readable(values),
        _ => text(dtype) || number(dtype) || date(dtype),
    }
}

/// Reads the rows of a table in blocks.
pub(super) fn read(
    table: &Table,
    unit: &mut Option<Unit>,
    context: &mut ReadContext,
    mut sink: impl FnMut(&mut ReadContext, Block) -> Result<()>,
) -> Result<()> {
    let path = &table.path;
    let digest = Input::open(path, context)?.finish()?;
    let place = path.to_str().ok_or_else(|| Error::failed(format!("{}: a path must be UTF-8", path.display())))?;
    let arguments = ScanArgsParquet { glob: false, ..ScanArgsParquet::default() };
    let scan = LazyFrame::scan_parquet(PlRefPath::new(place), arguments).context(path.display())?;
    let query = scan.select(selection(&table.columns));

    let (send, frames) = sync_channel(1);
    // A receiver that is gone ends the query.
    let callback = PlanCallback::new(move |frame: DataFrame| Ok(send.send(frame).is_err()));
    let query = query.sink_batches(callback, true, NonZeroUsize::new(BATCH)).context(path.display())?;
    let worker = std::thread::spawn(move || query.collect_with_engine(Engine::Streaming).map(drop));
    let mut row = 0;
    let mut taken = Ok(());
    for frame in frames {
        taken = take_in(&frame, table, &mut row, unit, context).and_then(|block| sink(context, block));
        if taken.is_err() {
            break;
        }
    }
    let read = worker.join();
    taken?;
    read.map_err(|_| Error::failed(format!("{}: polars cannot read it", path.display())))?.context(path.display())?;
    context.inputs.push(digest);
    Ok(())
}

/// The columns by what they are; those a table lacks are left out.
fn selection(columns: &Columns) -> Vec<Expr> {
    let texts = [(&columns.user, "user"), (&columns.item, "item"), (&columns.title, "title"), (&columns.text, "text")];
    let texts =
        texts.into_iter().filter_map(|(name, role)| Some(col(name.as_deref()?).cast(DataType::String).alias(role)));
    let others = [(&columns.time, "time"), (&columns.rating, "rating")];
    texts.chain(others.into_iter().filter_map(|(name, role)| Some(col(name.as_deref()?).alias(role)))).collect()
}

/// Parses a batch whose first row comes after `row`.
fn take_in(
    frame: &DataFrame,
    table: &Table,
    row: &mut u64,
    unit: &mut Option<Unit>,
    context: &mut ReadContext,
) -> Result<Block> {
    let place = table.path.display();
    let texts = |role: &str| frame.column(role).ok().map(|column| column.str()).transpose().context(&place);
    let (users, items, titles, about) = (texts("user")?, texts("item")?, texts("title")?, texts("text")?);
    let (times, ratings) = (Cells::of(frame, "time").context(&place)?, Cells::of(frame, "rating").context(&place)?);
    let mut block = Block::default();
    for at in 0..frame.height() {
        *row += 1;
        let cells = Row {
            user: text_at(users, at),
            item: text_at(items, at),
            time: times.get(at),
            rating: ratings.get(at),
            title: text_at(titles, at),
            text: text_at(about, at),
        };
        if let Err(what) = block.push(*row, &cells, table, unit) {
            context.bad_at(&table.path, &format!("row {row}"), &what)?;
        }
    }
    context.progress.add(frame.height() as u64)?;
    Ok(block)
}

fn text_at(column: Option<&StringChunked>, at: usize) -> &str {
    column.and_then(|column| column.get(at)).unwrap_or_default()
}

/// A column of times or ratings.
enum Cells {
    Missing,
    Text(StringChunked),
    Whole(Int64Chunked),
    Float(Float64Chunked),
    /// Times of which so many make up a millisecond.
    Date(Int64Chunked, i64),
    Days(Int64Chunked),
}

impl Cells {
    fn of(frame: &DataFrame, role: &str) -> PolarsResult<Self> {
        let Ok(column) = frame.column(role) else { return Ok(Self::Missing) };
        let whole = || -> PolarsResult<Int64Chunked> { Ok(column.cast(&DataType::Int64)?.i64()?.clone()) };
        Ok(match column.dtype() {
            DataType::Datetime(unit, _) => {
                let parts = match unit {
                    TimeUnit::Nanoseconds => 1_000_000,
                    TimeUnit::Microseconds => 1000,
                    TimeUnit::Milliseconds => 1,
                };
                Self::Date(whole()?, parts)
            }
            DataType::Date => Self::Days(whole()?),
            DataType::Float32 | DataType::Float64 => Self::Float(column.cast(&DataType::Float64)?.f64()?.clone()),
            dtype if dtype.is_integer() => Self::Whole(whole()?),
            _ => Self::Text(column.cast(&DataType::String)?.str()?.clone()),
        })
    }

    fn get(&self, at: usize) -> Cell<'_> {
        let cell = match self {
            Self::Missing => None,
            Self::Text(column) => column.get(at).map(Cell::Text),
            Self::Whole(column) => column.get(at).map(Cell::Whole),
            Self::Float(column) => column.get(at).map(Cell::Float),
            Self::Date(column, parts) => column.get(at).map(|time| Cell::Date(time.div_euclid(*parts))),
            Self::Days(column) => column.get(at).map(|days| Cell::Date(days.saturating_mul(86_400_000))),
        };
        cell.unwrap_or(Cell::Missing)
    }
}
