/* vixen image create. */
#ifndef VIXEN_CLI_IMAGE_CREATE_H
#define VIXEN_CLI_IMAGE_CREATE_H

int image_create(int argc, char **argv);	/* argv[0] is "create"; an exit code */

#endif
