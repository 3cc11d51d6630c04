"""Builds the panels and variables of the dashboards."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    FieldColor,
    QueryVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions, RowsHeatmapOptions
from grafana_foundation_sdk.builders.heatmap import Panel as HeatmapPanel
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.table import Panel as TablePanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    TableCellBackgroundDisplayMode,
    TableColoredBackgroundCellOptions,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
MODEL, MODALITY = 'job=~"$job", model_name=~"$model"', 'modality=~"$modality"'
VISION = 'modality=~"image|video"'
RATE = "[$__rate_interval]"
QUARTER, THIRD, HALF = 6, 8, 12  # of the dashboard's 24 columns
HEIGHT, GLANCE_HEIGHT = 8, 5


def dashboard(title: str, description: str) -> Dashboard:
    """An empty dashboard with the variables that all dashboards have."""
    return (
        Dashboard(f"prismoe: {title}")
        .uid(f"prismoe-{title.lower()}")
        .description(description)
        .tags(["prismoe"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_values("job", "Job", "vllm:num_requests_running"))
        .with_variable(_values("model", "Model", 'vllm:num_requests_running{job=~"$job"}', "model_name"))
    )


def layer_variable() -> QueryVariable:
    """A variable for the MoE layers to show."""
    return _values("layer", "Layer", 'prismoe_layer_routing_info{job=~"$job", model_name=~"$model"}')


def modality_variable() -> QueryVariable:
    """A variable for the modalities to show."""
    return _values("modality", "Modality", 'prismoe_tokens_total{job=~"$job", model_name=~"$model"}')


def _values(name: str, label: str, series: str, of_label: str | None = None) -> QueryVariable:
    """A variable with the values of a label, by default the label with the variable's name."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values({series}, {of_label or name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NUMERICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(VariableOption(text="All", value="$__all", selected=True))
    )


def over_time(
    title: str, description: str, queries: Mapping[str, str], unit: str = "short", width: int = THIRD
) -> TimeseriesPanel:
    """Lines over time, one query for each legend."""
    panel = TimeseriesPanel().title(title).description(description).datasource(DATASOURCE)
    panel.unit(unit).min(0).fill_opacity(10).height(HEIGHT).span(width)
    for ref_id, (legend, expr) in zip(ascii_uppercase, queries.items(), strict=False):
        panel.with_target(Dataquery().ref_id(ref_id).expr(expr).legend_format(legend))
    return panel


def now(
    title: str,
    description: str,
    query: str,
    legend: str,
    unit: str = "short",
    bad_from: Sequence[float] = (),
    text: BigValueTextMode = BigValueTextMode.VALUE_AND_NAME,
) -> StatPanel:
    """The newest values in large print. They are yellow and red from the two numbers of `bad_from` on."""
    colours = zip([None, *bad_from], ["green" if bad_from else "text", "yellow", "red"], strict=False)
    steps = [Threshold(value=value, color=colour) for value, colour in colours]
    panel = StatPanel().title(title).description(description).datasource(DATASOURCE)
    panel.unit(unit).thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    panel.text_mode(text).color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.NONE)
    target = Dataquery().ref_id("A").expr(query).legend_format(legend).instant()
    return panel.height(GLANCE_HEIGHT).span(QUARTER).with_target(target)


def by_layer_and_expert(title: str, description: str, query: str, width: int = HALF) -> TablePanel:
    """A matrix of shares, a row for each layer and a column for each expert, coloured by value."""
    colored = TableColoredBackgroundCellOptions(TableCellBackgroundDisplayMode.GRADIENT)
    matrix = {"rowField": "layer", "columnField": "expert", "valueField": "Value", "emptyValue": "null"}
    return (
        TablePanel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit("percentunit")
        .decimals(0)
        .color_scheme(FieldColor().mode(FieldColorModeId.CONTINUOUS_BL_YL_RD))
        .override_by_field_type("number", [DynamicConfigValue("custom.cellOptions", colored)])
        .with_transformation(DataTransformerConfig(id_val="groupingToMatrix", options=matrix))
        .with_target(Dataquery().ref_id("A").expr(query).format(PromQueryFormat.TABLE).instant())
        .height(HEIGHT)
        .span(width)
    )


def buckets_over_time(title: str, description: str, query: str, width: int = THIRD) -> HeatmapPanel:
    """A heatmap of a histogram over time, with a row for each bucket. `query` returns the buckets by `le`."""
    target = Dataquery().ref_id("A").expr(query).legend_format("{{le}}").format(PromQueryFormat.HEATMAP)
    return _over_time(title, description, target, width)


def by_expert_over_time(title: str, description: str, query: str, width: int = HALF) -> HeatmapPanel:
    """A heatmap over time with a row for each expert."""
    return _over_time(
        title, description, Dataquery().ref_id("A").expr(query).legend_format("{{expert}}"), width
    )


def _over_time(title: str, description: str, target: Dataquery, width: int) -> HeatmapPanel:
    return (
        HeatmapPanel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .calculate(False)
        .rows_frame(RowsHeatmapOptions().value("Tokens per second"))
        .color(HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Turbo").steps(64))
        .with_target(target)
        .height(HEIGHT)
        .span(width)
    )
