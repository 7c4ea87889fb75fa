# All images for both architectures: docker buildx bake [--push]. See docs/images.md.

variable "REGISTRY" { default = "tocsin" }
variable "TAG" { default = "latest" }
variable "BASE" { default = "python:3.11-slim-bookworm" }
variable "VERSION" { default = TAG }
variable "REVISION" { default = "" }
variable "SOURCE" { default = "" }
variable "CREATED" { default = "" }
# The time of what the engine makes itself; files have theirs from scripts/layer.py.
variable "SOURCE_DATE_EPOCH" { default = "315532800" }

group "default" { targets = ["image"] }

target "image" {
  name = service
  matrix = {
    service = [
      "adapter-bacnet",
      "adapter-dc09",
      "adapter-espa",
      "adapter-http",
      "adapter-isapi",
      "adapter-modbus",
      "adapter-mqtt",
      "adapter-onvif",
      "adapter-opcua",
      "adapter-osdp",
      "adapter-pos",
      "adapter-snmp",
      "adapter-syslog",
      "adapter-webhook",
      "camio-publisher",
      "correlator",
      "vms-publisher",
      "tools",
    ]
  }
  dockerfile = "services/Dockerfile"
  platforms = ["linux/amd64", "linux/arm64"]
  args = {
    SERVICE = service
    BASE = BASE
    VERSION = VERSION
    REVISION = REVISION
    SOURCE = SOURCE
    CREATED = CREATED
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
  }
  tags = ["${REGISTRY}/${service}:${TAG}"]
}
