# make        build            make run    build, make a Debian guest image, boot it on this terminal
# make test   run all tests    make clean  forget the build
BUILD ?= build
IMAGE ?= debian-12

.PHONY: all run test setup clean
all: setup
	@ninja -C $(BUILD)

setup:
	@tools/setup $(BUILD)

run: all
	@test -d "$${XDG_DATA_HOME:-$$HOME/.local/share}/vixen/images/$(IMAGE)" || $(BUILD)/vixen image build $(IMAGE)
	@$(BUILD)/vixen run $(IMAGE)

test: all
	@tools/run-tests $(BUILD)

clean:
	@rm -rf $(BUILD)
