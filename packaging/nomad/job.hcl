# A Nomad job of an application that master-process runs. Replace `registry.example/app`, the command and the port.
job "app" {
  type = "service"

  # A new allocation is healthy before an old one ends.
  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "5s"
    healthy_deadline = "2m"
    auto_revert      = true
  }

  group "app" {
    count = 2

    network {
      port "http" {
        to = 8080
      }
      port "metrics" {
        to = 9464
      }
    }

    # A program that cannot run ends the task: --give-up.
    restart {
      attempts = 3
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }

    service {
      name     = "app"
      port     = "http"
      provider = "nomad"

      # Every slot has a ready worker, and no accept queue is full.
      check {
        name     = "ready"
        type     = "http"
        port     = "metrics"
        path     = "/readyz"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "app" {
      driver = "docker"
      user   = "65532:65532"

      # Requests come until everybody knows that the service is gone. In this time the workers go on.
      shutdown_delay = "5s"
      kill_signal    = "SIGTERM"
      # --kill-timeout (20 s) + 5 s for what is left.
      kill_timeout = "25s"

      config {
        image   = "registry.example/app:1"
        command = "master-process"
        args = [
          "--workers=max",
          "--kill-timeout=20s",
          "--give-up=10/1min",
          "--metrics=9464",
          "--log-format=json",
          "--",
          "node",
          "server.js",
        ]
        ports           = ["http", "metrics"]
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        readonly_rootfs = true
      }

      resources {
        cores  = 2
        memory = 1024
      }
    }
  }
}
