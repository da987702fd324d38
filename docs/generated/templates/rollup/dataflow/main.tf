# A job of the flex template `tiebeam-rollup`. The image and the template are made by build.sh.
terraform {
  required_version = ">= 1.3"
  required_providers {
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 6.0"
    }
  }
}

variable "project" {
  type        = string
  description = "Project of the job"
}

variable "region" {
  type        = string
  description = "Region of the job"
  default     = "europe-west1"
}

variable "bucket" {
  type        = string
  description = "Bucket, without gs://, that holds the template, staged files and temporary ones"
}

variable "job_name" {
  type        = string
  description = "Name of the job; a stream keeps it when it is updated"
  default     = "tiebeam-rollup"
}

variable "service_account_email" {
  type        = string
  description = "Account of the workers; null: the default one of the project"
  default     = null
}

variable "max_workers" {
  type        = number
  description = "How many workers there are at most: the limit of what the job costs"
  default     = 4
}

variable "machine_type" {
  type        = string
  description = "Machine of each worker"
  default     = "n2-standard-2"
}

variable "parameters" {
  type        = map(string)
  description = "Options of the pipeline, as in metadata.json"
  default = {
    source      = "jsonl"
    source_path = "in/*.jsonl"
    sink        = "parquet"
    sink_path   = "out/"
    aggregates  = "total=sum(amount),n=count()"
  }

  validation {
    condition     = alltrue([for name in ["source", "sink", "aggregates"] : contains(keys(var.parameters), name)])
    error_message = "These parameters are required: source, sink, aggregates."
  }

  validation {
    condition = alltrue([for name in keys(var.parameters) : contains([
      "from",
      "to",
      "source",
      "source_path",
      "source_event_time",
      "source_event_time_format",
      "source_event_time_zone",
      "source_columns",
      "source_positions",
      "source_on_bad_file",
      "source_table",
      "source_query",
      "source_where",
      "source_snapshot_time",
      "source_cursor",
      "source_cursor_overlap_secs",
      "source_streams",
      "source_temp_dataset",
      "source_project",
      "source_region",
      "source_credentials",
      "source_bigquery_endpoint",
      "source_bigquery_storage_endpoint",
      "source_patience_secs",
      "source_compression",
      "source_max_row_bytes",
      "source_delimiter",
      "source_quote",
      "source_header",
      "source_names",
      "source_null_values",
      "source_newlines_in_values",
      "source_schema",
      "source_servers",
      "source_topics",
      "source_partitions",
      "source_format",
      "source_avro_schema",
      "source_descriptor_file",
      "source_message",
      "source_schema_registry",
      "source_registry_user",
      "source_registry_password",
      "source_start",
      "source_until",
      "source_disorder_secs",
      "source_lag_secs",
      "source_metadata",
      "source_key_format",
      "source_isolation",
      "source_on_offset_out_of_range",
      "source_group",
      "source_commit_offsets",
      "source_poll_secs",
      "source_security",
      "source_sasl",
      "source_username",
      "source_password",
      "source_oauth_url",
      "source_ca_file",
      "source_certificate_file",
      "source_key_file",
      "source_key_password",
      "source_client_config",
      "source_subscription",
      "source_quiet_secs",
      "source_id_attribute",
      "source_horizon_secs",
      "source_acknowledge",
      "source_attributes",
      "source_event_time_attribute",
      "source_readers",
      "source_deadline_secs",
      "source_pubsub_endpoint",
      "sink",
      "sink_commit_secs",
      "sink_commit_rows",
      "sink_writers",
      "sink_path",
      "sink_mode",
      "sink_partition_by",
      "sink_target_file_bytes",
      "sink_compression",
      "sink_table",
      "sink_key",
      "sink_method",
      "sink_delivery",
      "sink_staging",
      "sink_new_columns",
      "sink_create",
      "sink_partition_unit",
      "sink_partition_expiration_days",
      "sink_cluster_by",
      "sink_labels",
      "sink_expiration_days",
      "sink_max_tables",
      "sink_project",
      "sink_region",
      "sink_credentials",
      "sink_bigquery_endpoint",
      "sink_bigquery_storage_endpoint",
      "sink_patience_secs",
      "sink_delimiter",
      "sink_header",
      "sink_servers",
      "sink_topic",
      "sink_format",
      "sink_schema_registry",
      "sink_registry_user",
      "sink_registry_password",
      "sink_headers",
      "sink_ledger",
      "sink_max_message_bytes",
      "sink_partitions",
      "sink_replication",
      "sink_topic_config",
      "sink_security",
      "sink_sasl",
      "sink_username",
      "sink_password",
      "sink_oauth_url",
      "sink_ca_file",
      "sink_certificate_file",
      "sink_key_file",
      "sink_key_password",
      "sink_client_config",
      "sink_attributes",
      "sink_ordering_key",
      "sink_id_column",
      "sink_pubsub_endpoint",
      "by",
      "window",
      "aggregates",
      "where",
      "late",
      "late_commit_secs",
      "late_commit_rows",
      "late_writers",
      "late_path",
      "late_mode",
      "late_partition_by",
      "late_target_file_bytes",
      "late_compression",
      "late_table",
      "late_key",
      "late_method",
      "late_delivery",
      "late_staging",
      "late_new_columns",
      "late_create",
      "late_partition_unit",
      "late_partition_expiration_days",
      "late_cluster_by",
      "late_labels",
      "late_expiration_days",
      "late_max_tables",
      "late_project",
      "late_region",
      "late_credentials",
      "late_bigquery_endpoint",
      "late_bigquery_storage_endpoint",
      "late_patience_secs",
      "late_delimiter",
      "late_header",
      "late_servers",
      "late_topic",
      "late_format",
      "late_schema_registry",
      "late_registry_user",
      "late_registry_password",
      "late_headers",
      "late_ledger",
      "late_max_message_bytes",
      "late_partitions",
      "late_replication",
      "late_topic_config",
      "late_security",
      "late_sasl",
      "late_username",
      "late_password",
      "late_oauth_url",
      "late_ca_file",
      "late_certificate_file",
      "late_key_file",
      "late_key_password",
      "late_client_config",
      "late_attributes",
      "late_ordering_key",
      "late_id_column",
      "late_pubsub_endpoint",
      "lateness",
      "dead_letters",
      "max_rejected_ratio",
      "run_id",
      "max_attempts",
    ], name)])
    error_message = "There is a parameter that rollup does not have; metadata.json lists them."
  }
}

resource "google_dataflow_flex_template_job" "job" {
  provider                = google-beta
  project                 = var.project
  region                  = var.region
  name                    = var.job_name
  container_spec_gcs_path = "gs://${var.bucket}/templates/tiebeam-rollup.json"
  staging_location        = "gs://${var.bucket}/staging"
  temp_location           = "gs://${var.bucket}/temp"
  service_account_email   = var.service_account_email
  machine_type            = var.machine_type
  max_workers             = var.max_workers
  parameters              = var.parameters
  on_delete               = "drain"
}

output "job_id" {
  description = "Id of the job: tiebeam status JOB_ID --project=… --region=…"
  value       = google_dataflow_flex_template_job.job.job_id
}
