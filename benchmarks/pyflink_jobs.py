"""The jobs of PyFlink for benchmarks/on_flink.py, run by an interpreter that has PyFlink: KIND REST SERVERS TARGET JAR…"""

import json
import sys

from pyflink.common import Configuration, Duration, Encoder, SimpleStringSchema, Time, Types, WatermarkStrategy
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSink, RollingPolicy
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer, KafkaSource
from pyflink.datastream.functions import ProcessWindowFunction
from pyflink.datastream.window import TumblingEventTimeWindows
from pyflink.java_gateway import get_gateway
from pyflink.table import StreamTableEnvironment
from pyflink.util.java_utils import add_jars_to_context_class_loader, to_jarray

DISORDER_SECS = 5


def environment(rest, jars):
    """One that sends its jobs to a cluster: what PyFlink makes by itself would start one of its own."""
    host, port = rest.split(":")
    told = {
        "parallelism.default": "2",
        "execution.checkpointing.interval": "2000",
        "execution.checkpointing.min-pause": "500",
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
    }
    configuration = Configuration()
    for name, value in told.items():
        configuration.set_string(name, value)
    jvm = get_gateway().jvm
    add_jars_to_context_class_loader([f"file://{jar}" for jar in jars])
    remote = jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment.createRemoteEnvironment
    return StreamExecutionEnvironment(remote(host, int(port), configuration._j_configuration, to_jarray(jvm.String, jars)))


def parsed(line):
    event = json.loads(line)
    return event["category"] + "|" + event["kind"], event["amount"]


class Named(ProcessWindowFunction):
    def process(self, key, context, elements):
        for _, total in elements:
            yield f"{context.window().start},{key.replace('|', ',')},{total!r}"


def datastream(env, servers, target):
    """Python parses each event, Flink keeps the windows, Python adds up; the time is that of the message."""
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(servers)
        .set_topics("events")
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_property("isolation.level", "read_committed")
        .set_value_only_deserializer(SimpleStringSchema())
        .build()
    )
    timely = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(DISORDER_SECS))
    pairs = env.from_source(source, timely, "kafka").map(parsed, Types.TUPLE([Types.STRING(), Types.DOUBLE()]))
    windows = pairs.key_by(lambda pair: pair[0], Types.STRING()).window(TumblingEventTimeWindows.of(Time.minutes(1)))
    sums = windows.reduce(lambda a, b: (a[0], a[1] + b[1]), window_function=Named(), output_type=Types.STRING())
    rolling = RollingPolicy.default_rolling_policy(rollover_interval=1000, inactivity_interval=1000)
    sums.sink_to(FileSink.for_row_format(target, Encoder.simple_string_encoder()).with_rolling_policy(rolling).build())
    env.execute_async("sums")


def sql(env, servers, target):
    """No Python at run time."""
    table = StreamTableEnvironment.create(env)
    table.execute_sql(f"""
        CREATE TABLE events (
            category STRING, kind STRING, amount DOUBLE, happened TIMESTAMP_LTZ(3) METADATA FROM 'timestamp',
            WATERMARK FOR happened AS happened - INTERVAL '{DISORDER_SECS}' SECOND
        ) WITH (
            'connector' = 'kafka', 'topic' = 'events', 'properties.bootstrap.servers' = '{servers}',
            'properties.isolation.level' = 'read_committed', 'scan.startup.mode' = 'earliest-offset', 'format' = 'json'
        )""")
    table.execute_sql(f"""
        CREATE TABLE sums (window_start TIMESTAMP(3), category STRING, kind STRING, total DOUBLE) WITH (
            'connector' = 'filesystem', 'path' = 'file://{target}', 'format' = 'csv',
            'sink.rolling-policy.rollover-interval' = '1s', 'sink.rolling-policy.check-interval' = '1s'
        )""")
    table.get_config().set("table.local-time-zone", "UTC")
    table.execute_sql("""
        INSERT INTO sums SELECT window_start, category, kind, SUM(amount)
        FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(happened), INTERVAL '1' MINUTE)) GROUP BY window_start, window_end, category, kind""")


if __name__ == "__main__":
    kind, rest, servers, target, *jars = sys.argv[1:]
    {"datastream": datastream, "sql": sql}[kind](environment(rest, jars), servers, target)
